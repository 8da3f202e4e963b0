import json
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from icve.data.media import video
from icve.data.media.video import (
    VideoError,
    probe,
    read_frames,
    resize_crop,
    sample_indices,
    timestamps,
    write_video,
)


def encode(path, frames, codec="libx264", times=None, **options):
    """Write frames with an encoder of choice; times are in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {name.replace("_", "-"): value for name, value in options.items()}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def moving(count, height=96, width=128, seed=0):
    """Frames (F, H, W, 3) uint8 of a smooth texture that moves two pixels per frame."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, (width + 2 * count) // 8 + 2, 3))
    picture = resize_crop(coarse.astype(np.uint8)[None], (height, width + 2 * count))[0]
    return np.stack([picture[:, 2 * k : 2 * k + width] for k in range(count)])


def straight(path):
    """All frames of a file's first video stream, as they come out of the decoder."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)])


def test_written_frames_come_back(tmp_path):
    frames = moving(10)
    write_video(tmp_path / "new" / "a.mp4", frames, fps=24)
    back = read_frames(tmp_path / "new" / "a.mp4")
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous
    mse = np.mean((back.astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / mse) > 27  # noise in colour, which is stored at half the resolution
    assert abs((back.astype(float) - frames).mean((0, 1, 2))).max() < 2  # the colour matrix is the one stated
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("fps", [8, 23.976, Fraction(30000, 1001), 12.5])
def test_written_rate(tmp_path, fps):
    write_video(tmp_path / "a.mp4", moving(6, 16, 16), fps)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(float(Fraction(fps).limit_denominator(1001)), rel=1e-9)
    assert timestamps(tmp_path / "a.mp4") == pytest.approx(np.arange(6) / float(fps), abs=1e-4)


def test_odd_sizes_grow_by_replication(tmp_path, numbered_frames):
    frames = moving(3, 32, 48)[:, :31, :47]
    write_video(tmp_path / "a.mp4", frames, 8)
    back = read_frames(tmp_path / "a.mp4").astype(int)
    assert back.shape == (3, 32, 48, 3)
    assert np.abs(back[:, 31] - back[:, 30]).mean() < 6
    assert np.abs(back[:, :, 47] - back[:, :, 46]).mean() < 6


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", moving(3, 16, 16), 8)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="uint8 frames"):
        write_video(tmp_path / "a.mp4", moving(3, 16, 16).astype(np.float32), 8)
    with pytest.raises(ValueError, match="positive"):
        write_video(tmp_path / "a.mp4", moving(3, 16, 16), 0)

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(video.av.VideoFrame, "from_ndarray", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path / "a.mp4", moving(4, 16, 16), 8)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


BAD = {
    "truncated_no_moov.mp4": "cannot be read as a video",
    "truncated_faststart.mp4": "truncated",
    "zero_byte.mp4": "empty",
    "text_renamed.mp4": "cannot be read as a video",
    "audio_only.mp4": "no video stream",
    "one_frame.mp4": (480, 832, 1),
    "odd_dims_351x199.mp4": (199, 351, 49),
    "timestamp_gap_60s.mp4": (480, 832, 49),
    "rotated_metadata_90.mp4": (832, 480, 49),
    "corrupt_bytes.mp4": "damaged",
}


def test_every_bad_file_is_refused_or_read_whole(shared_data):
    folder = shared_data / "videos" / "bad"
    assert {entry["file"] for entry in json.loads((folder / "bad.json").read_text())} == set(BAD)
    for name, expected in BAD.items():
        if isinstance(expected, str):
            with pytest.raises(VideoError, match=expected) as error:
                read_frames(folder / name, size=(24, 32))
            assert "\n" not in str(error.value)
            assert str(folder / name) in str(error.value)
        else:
            info = probe(folder / name)
            assert (info.height, info.width, info.frames) == expected
            assert read_frames(folder / name, [0, info.frames - 1]).shape[1:3] == expected[:2]


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        probe(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="folder"):
        read_frames(tmp_path)
    again = pickle.loads(pickle.dumps(VideoError("a.mp4", "it is empty.")))
    assert (again.path, again.reason, str(again)) == ("a.mp4", "it is empty.", "a.mp4: it is empty.")


def test_a_replaced_file_is_read_anew(tmp_path):
    write_video(tmp_path / "a.mp4", moving(3, 16, 16), 8)
    assert probe(tmp_path / "a.mp4").frames == 3
    write_video(tmp_path / "a.mp4", moving(5, 16, 16), 8)
    assert probe(tmp_path / "a.mp4").frames == 5


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.mp4"])
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_truncated_files_of_every_container(tmp_path, name, share):
    encode(tmp_path / name, moving(30), "libx264" if name != "cut.avi" else "mpeg4")
    assert len(read_frames(tmp_path / name)) == 30
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError):
        read_frames(tmp_path / name)


def test_real_videos_are_what_the_decoder_shows(shared_data):
    for name in ("odd_dims_351x199.mp4", "timestamp_gap_60s.mp4"):
        path = shared_data / "videos" / "bad" / name
        assert np.array_equal(read_frames(path, [0, 7, 8, 31, 48]), straight(path)[[0, 7, 8, 31, 48]]), name


CLOSED = "keyint=12:min-keyint=12:bframes=3:scenecut=0"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("closed.mp4", {"x264_params": CLOSED}),
        ("closed.mkv", {"x264_params": CLOSED}),
        ("open.mp4", {"x264_params": CLOSED + ":open-gop=1"}),
        ("open.ts", {"x264_params": CLOSED + ":open-gop=1"}),
        ("refresh.mp4", {"x264_params": "keyint=12:intra-refresh=1"}),
        ("refresh.ts", {"x264_params": "keyint=12:intra-refresh=1"}),
        ("decoding_order.avi", {"x264_params": CLOSED}),
    ],
)
def test_frames_are_exact_wherever_reading_begins(tmp_path, name, options):
    path = tmp_path / name
    encode(path, moving(40), threads="1", **options)
    whole = straight(path)
    assert len(whole) == probe(path).frames == 40
    assert np.allclose(np.diff(timestamps(path)), 0.1, atol=1e-3)
    for start in range(38):
        assert np.array_equal(read_frames(path, start=start, count=3), whole[start : start + 3]), start
    scattered = [39, 3, 25, 25, 11, 12]
    assert np.array_equal(read_frames(path, scattered), whole[scattered])


@pytest.mark.parametrize("width", [16, 24, 46, 48, 64, 72, 98])
def test_narrow_pictures(tmp_path, numbered_frames, frame_numbers, width):
    write_video(tmp_path / "a.mp4", numbered_frames(4, 32, width), 8)
    assert frame_numbers(read_frames(tmp_path / "a.mp4")) == [0, 1, 2, 3]


def test_av1(tmp_path, numbered_frames, frame_numbers):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV cannot write AV1")
    encode(tmp_path / "a.mp4", numbered_frames(10, 64, 64), "libsvtav1", g="4")
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.frames) == ("av1", 10)
    assert frame_numbers(read_frames(tmp_path / "a.mp4", start=5, count=3)) == [5, 6, 7]


def test_selection_of_frames(tmp_path, numbered_frames, frame_numbers):
    write_video(tmp_path / "a.mp4", numbered_frames(24), fps=24)
    path = tmp_path / "a.mp4"
    assert frame_numbers(read_frames(path)) == list(range(24))
    assert frame_numbers(read_frames(path, start=20)) == [20, 21, 22, 23]
    assert frame_numbers(read_frames(path, [5, 0, 5])) == [5, 0, 5]
    assert frame_numbers(read_frames(path, fps=8)) == list(range(0, 24, 3))
    assert frame_numbers(read_frames(path, start=2, count=4, fps=12)) == [2, 4, 6, 8]
    for options, match in [
        ({"start": 20, "count": 5}, "gives 4 frames from frame 20 on, fewer than 5"),
        ({"start": 24}, "has 24 frames"),
        ({"count": 9, "fps": 8}, "gives 8 frames at 8 fps"),
        ({"indices": [0, 24]}, "no frame 24"),
        ({"indices": [-1]}, "no frame -1"),
    ]:
        with pytest.raises(VideoError, match=match):
            read_frames(path, **options)
    for options in ({"indices": [0], "fps": 8}, {"indices": []}, {"count": 0}, {"start": -1}):
        with pytest.raises(ValueError, match=r"Give|non-empty|at least"):
            read_frames(path, **options)


def test_variable_rate_is_resampled_by_time(tmp_path, numbered_frames, frame_numbers):
    times = [0, 100, 200, 300, 600, 900, 1400, 1500]  # ms
    encode(tmp_path / "a.mkv", numbered_frames(8), times=times)
    assert timestamps(tmp_path / "a.mkv") == pytest.approx(np.array(times) / 1000)
    # at 0, 200 … 1400 ms; 400 is nearest to 300, 800 to 900, 1000 to 900 again, 1200 to 1400, and 1400 again
    assert frame_numbers(read_frames(tmp_path / "a.mkv", fps=5)) == [0, 2, 3, 4, 5, 6]


def test_sample_indices_are_the_nearest_in_time():
    generator = np.random.default_rng(0)
    for _ in range(50):
        seconds = np.cumsum(generator.uniform(0.01, 0.2, generator.integers(1, 40)))
        start, fps = int(generator.integers(0, len(seconds))), float(generator.uniform(1, 60))
        chosen = sample_indices(seconds, fps, start)
        wanted = np.arange(seconds[start], seconds[-1] + 1e-3, 1 / fps)
        distances = np.abs(seconds[start:] - wanted[:, None])
        nearest = start + distances.argmin(1)
        assert (np.diff(chosen) > 0).all()
        if np.diff(seconds[start:]).min(initial=9) > 1 / fps:
            assert np.array_equal(chosen, np.arange(start, len(seconds)))
        elif len(chosen) < len(seconds) - start:
            assert np.array_equal(chosen, np.unique(nearest))
        for count in (1, 3, 20):
            assert np.array_equal(sample_indices(seconds, fps, start, count), chosen[:count])
    with pytest.raises(ValueError, match="positive"):
        sample_indices(np.arange(3.0), 0)


@pytest.mark.parametrize("rate", [1, 8, 12, 15, 23, 23.5, 23.9, 23.976, 24])
def test_a_slow_timeline_gives_all_its_frames(rate):
    for frames in (1, 2, 33, 77, 600, 3000):
        assert np.array_equal(sample_indices(np.arange(frames) / rate, 24), np.arange(frames))
        assert np.array_equal(sample_indices(np.round(np.arange(frames) / rate, 3), 24), np.arange(frames))


def test_resize_crop_covers_and_centres():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (2, 32, 64, 3))
    square = resize_crop(ramp, (16, 16))
    assert square.shape == (2, 16, 16, 3)
    assert square.flags.c_contiguous
    # halved, then columns 8..23 of 32: the mean of columns 16, 17 comes first
    assert abs(square[0, 0, :, 0].astype(float) - (4 * (2 * np.arange(8, 24) + 0.5))).max() <= 1
    assert np.array_equal(resize_crop(ramp, (32, 64)), ramp)
    assert resize_crop(ramp, (100, 100)).shape == (2, 100, 100, 3)
    assert resize_crop(ramp[..., :1], (16, 16)).shape == (2, 16, 16, 1)


def test_resize_crop_aligns_a_stretched_copy():
    frames = moving(1, 90, 160)
    stretched = resize_crop(frames, (96, 144), shape=(96, 144))
    aligned = resize_crop(stretched, (48, 48), shape=(90, 160)).astype(float)
    truth = resize_crop(frames, (48, 48)).astype(float)
    unaligned = resize_crop(stretched, (48, 48)).astype(float)
    assert np.mean((aligned - truth) ** 2) < 0.1 * np.mean((unaligned - truth) ** 2)


def test_size_gives_the_same_as_resizing_afterwards(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20), 8)
    whole = read_frames(tmp_path / "a.mp4")
    assert np.array_equal(read_frames(tmp_path / "a.mp4", size=(40, 40)), resize_crop(whole, (40, 40)))


def test_another_decoder_sees_the_same_frames_of_an_ordinary_file(tmp_path):
    decord = pytest.importorskip("decord", reason="decord publishes no wheel for this platform")
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (20, 12, 16, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_video(tmp_path / "plain.mp4", frames, 8)
    theirs = decord.VideoReader(str(tmp_path / "plain.mp4"), num_threads=1)
    ours = read_frames(tmp_path / "plain.mp4")
    assert len(theirs) == len(ours) == 20
    difference = np.abs(theirs.get_batch(range(20)).asnumpy().astype(int) - ours)
    assert difference.max() <= 2
