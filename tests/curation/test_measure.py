import cv2
import numpy as np
import pytest

from icve.curation.measure import Measure, measure, read_signals
from icve.curation.probe import Probe
from icve.curation.stage import Workspace
from icve.data.manifest import ManifestError
from icve.data.media.video import VideoError, read_frames, write_video

SIZE = (144, 256)  # what frames are measured at, so that nothing is scaled


def texture(height=400, width=600, seed=0):
    """A picture with detail at every scale, uint8."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.uniform(0, 1, (n, n, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (4, 8, 16, 32, 64)
    ]
    picture = sum(layers)
    return (255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)


@pytest.fixture
def moving(tmp_path):
    """moving(dx, dy, zoom, fps): a video of a view that moves over a texture by so many pixels per frame."""

    def make(dx=0.0, dy=0.0, zoom=1.0, frames=13, fps=12):
        picture, (height, width) = texture(), SIZE
        clip = []
        for k in range(frames):
            scale = zoom**-k
            view = np.float32([[scale, 0, 170 + dx * k], [0, scale, 130 + dy * k]])
            view[:, 2] += (1 - scale) * np.float32([(width - 1) / 2, (height - 1) / 2])
            clip.append(cv2.warpAffine(picture, view, (width, height), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR))
        write_video(tmp_path / "moving.mp4", np.stack(clip), fps)
        return tmp_path / "moving.mp4"

    return make


def test_a_pan_is_measured_in_diagonals_per_second(moving):
    signals = measure(moving(dx=3, dy=-2), SIZE)
    diagonal = np.hypot(*SIZE)
    # The view moves right and up, so what is seen moves left and down.
    np.testing.assert_allclose(np.median(signals["flow_pan"], 0) * diagonal, [-36, 24], atol=2)
    assert np.median(signals["flow_median"]) * diagonal == pytest.approx(np.hypot(36, 24), abs=2)
    assert abs(np.median(signals["flow_zoom"])) < 0.03


def test_motion_does_not_depend_on_the_frame_rate(moving):
    slow, fast = measure(moving(dx=2, fps=12), SIZE), measure(moving(dx=1, fps=24, frames=26), SIZE)
    assert len(fast["flow_frames"]) == pytest.approx(len(slow["flow_frames"]), abs=1)
    assert np.median(fast["flow_median"]) == pytest.approx(np.median(slow["flow_median"]), rel=0.1)


def test_a_zoom_is_no_pan(moving):
    signals = measure(moving(zoom=1.02), SIZE)
    assert np.median(signals["flow_zoom"]) == pytest.approx(12 * 0.02, rel=0.25)
    assert np.abs(np.median(signals["flow_pan"], 0)).max() < 0.01


def test_what_stands_still_has_no_motion(moving):
    signals = measure(moving(), SIZE)
    assert np.median(signals["flow_median"]) < 1e-3
    assert np.median(signals["change"]) < 2


def test_frame_signals_are_what_they_say(moving):
    path = moving(dx=5, frames=6)
    signals = measure(path, SIZE)
    frames = read_frames(path)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(float)
    hsv = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in frames]).astype(float)
    np.testing.assert_allclose(signals["luma"], grey.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(signals["contrast"], grey.std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(signals["change"], [0, *np.abs(np.diff(hsv, axis=0)).mean((1, 2, 3))], rtol=1e-5)
    means = frames.reshape(6, 16, 9, 16, 16, 3).mean((2, 4))
    assert np.abs(signals["mosaic"] - means).max() <= 1
    np.testing.assert_allclose(signals["histogram"].sum(1), 1, rtol=1e-5)
    assert list(signals["sample_frames"]) == [0, 2, 4]  # 6 per second of 12
    np.testing.assert_allclose(signals["seconds"], np.arange(6) / 12, atol=1e-4)


def test_blur_lowers_sharpness_and_contrast_does_not(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    sharp = blocks.repeat(8, 0).repeat(8, 1)
    found = {}
    for name, picture in {
        "sharp": sharp,
        "blurred": cv2.GaussianBlur(sharp, (0, 0), 4),
        "faint": (sharp * 0.5 + 60).astype(np.uint8),
    }.items():
        write_video(tmp_path / f"{name}.mp4", np.stack([picture] * 3), 12)
        found[name] = float(np.median(measure(tmp_path / f"{name}.mp4", SIZE)["sharpness"]))
    assert found["blurred"] < 0.4 * found["sharp"]
    assert found["faint"] == pytest.approx(found["sharp"], rel=0.15)


def test_bars_are_shares_of_the_picture(tmp_path):
    picture = np.full((*SIZE, 3), 120, np.uint8)
    picture[:18], picture[-36:], picture[:, :64] = 0, 0, 0
    clip = np.stack([picture, picture, np.zeros_like(picture)])
    write_video(tmp_path / "bars.mp4", clip, 12)
    bars = measure(tmp_path / "bars.mp4", SIZE)["bars"]
    np.testing.assert_allclose(bars[0], [18 / 144, 36 / 144, 64 / 256, 0], atol=2 / 144)
    assert np.isnan(bars[2]).all()


def test_signals_are_written_and_read_by_name(moving, tmp_path):
    path = moving(frames=5)
    work = Workspace(tmp_path, tmp_path / "out", tmp_path)
    (row,) = Probe(min_side=16, min_seconds=0)([{"key": "some-key", "video": path.name}], work)
    (row,) = Measure()([row], work)
    assert row["signals"] == "signals/some-key.npz"
    assert [file.name for file in (tmp_path / "out" / "signals").iterdir()] == ["some-key.npz"]
    luma, seconds = read_signals(work, row, "luma", "seconds")
    assert luma.shape == seconds.shape == (5,)
    with pytest.raises(ManifestError):
        read_signals(work, row | {"signals": "../out/signals/some-key.npz"}, "luma")
    with pytest.raises(ManifestError):
        Measure()([row | {"key": "../../outside"}], work)


def test_signals_of_a_file_written_anew_are_read_anew(tmp_path):
    work, row = Workspace(tmp_path, tmp_path, tmp_path), {"signals": "s.npz"}
    for value in (1.0, 2.0):
        np.savez(tmp_path / "s.npz", luma=np.array([value]))
        assert read_signals(work, row, "luma")[0] == value


def test_pickled_signals_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", luma=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="pickle"):
        read_signals(Workspace(tmp_path, tmp_path, tmp_path), {"signals": "s.npz"}, "luma")


def test_the_time_limit_grows_with_frames_and_pixels():
    small, long, large = (
        Measure().seconds({"frames": frames, "width": width, "height": 1080})
        for frames, width in ((100, 960), (1000, 960), (100, 9600))
    )
    assert 60 < small < long
    assert small < large
    hour = Measure().seconds({"frames": 86400, "width": 1920, "height": 1080})
    assert hour > 86400 * 0.05  # more than a slow core needs


@pytest.mark.parametrize("name", ["corrupt_bytes", "truncated_faststart", "zero_byte"])
def test_what_does_not_decode_whole_is_refused(shared_data, tmp_path, name):
    folder = shared_data / "videos" / "bad"
    row = {"key": "a", "video": f"{name}.mp4", "frames": 41, "width": 832, "height": 480}
    with pytest.raises(VideoError):
        Measure()([row], Workspace(folder, tmp_path, folder))
    assert not list(tmp_path.rglob("*.npz*"))


def test_a_rotated_video_is_measured_upright(shared_data):
    path = shared_data / "videos" / "bad" / "rotated_metadata_90.mp4"
    signals = measure(path, (832, 480))
    first = cv2.resize(read_frames(path, [0])[0], (16, 16), interpolation=cv2.INTER_AREA)
    assert np.abs(signals["mosaic"][0].astype(int) - first).mean() < 2


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="side"):
        Measure(side=8)
