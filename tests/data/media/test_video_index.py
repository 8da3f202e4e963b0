"""Frames are those that are shown: streams whose packets, times or sizes say otherwise."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from icve.data.media.video import VideoError, VideoWriter, iterate_frames, probe, read_frames, timestamps
from icve.data.media.video_index import index_packets
from tests.data.media.streams import X264, noisy, write


def packets_of(path):
    with av.open(str(path)) as file:
        return [packet for packet in file.demux(file.streams.video[0]) if packet.size]


def consistent(path):
    """All frames, which must not depend on where reading begins."""
    whole = read_frames(path)
    assert len(whole) == probe(path).frames == len(timestamps(path))
    assert (np.diff(timestamps(path)) > 0).all()
    for start in range(len(whole)):
        assert np.array_equal(read_frames(path, start=start, count=1)[0], whole[start]), start
    assert np.array_equal(np.concatenate(list(iterate_frames(path))), whole)
    return whole


def test_hidden_frames_of_vp8_are_no_frames(tmp_path):
    write(tmp_path / "shown.webm", noisy(20), "libvpx", {"g": "8"})
    with av.open(str(tmp_path / "shown.webm")) as source, av.open(str(tmp_path / "a.webm"), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(packet)
                if number in (3, 11, 12):
                    data[0] &= ~0x10  # the bit that says whether a frame is shown (RFC 6386, section 9.1)
                hidden = av.Packet(bytes(data))
                hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
                hidden.is_keyframe, hidden.stream = packet.is_keyframe, stream
                file.mux(hidden)
    assert len(packets_of(tmp_path / "a.webm")) == 20
    whole = consistent(tmp_path / "a.webm")
    shown = [number for number in range(20) if number not in (3, 11, 12)]
    assert np.array_equal(whole, read_frames(tmp_path / "shown.webm", shown))
    assert timestamps(tmp_path / "a.webm") == pytest.approx(np.array(shown) / 10)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_leading_pictures_without_their_key_frame(tmp_path, name, numbered_frames, frame_numbers):
    # From the second key frame on: pictures that are decoded after it, shown before it and predicted from earlier ones.
    options = {
        "preset": "ultrafast",
        "x265-params": "log-level=none:pools=1:keyint=12:min-keyint=12:open-gop=1:bframes=3:scenecut=0",
    }
    frames = numbered_frames(30)
    packets = write(tmp_path / "whole.mkv", frames, "libx265", options)
    second = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
    assert any(packet.pts < packets[second].pts for packet in packets[second:])
    write(
        tmp_path / name,
        frames,
        "libx265",
        options | {"x265-params": options["x265-params"] + ":repeat-headers=1"},
        range(second),
    )
    assert frame_numbers(consistent(tmp_path / name)) == list(range(12, 30))


@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg2video", {"bf": "2", "g": "9", "b": "8M", "qmax": "2"}), ("libx264", X264 | {"bf": "2", "g": "9"})],
)
@pytest.mark.parametrize("share", [0.2, 0.45])
def test_a_transport_stream_cut_before_a_key_frame(tmp_path, codec, options, share, numbered_frames, frame_numbers):
    path = tmp_path / "a.ts"
    write(path, numbered_frames(40), codec, options)
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * share) :])
    numbers = frame_numbers(consistent(path))
    assert 5 < len(numbers) < 40
    assert numbers == list(range(numbers[0], 40))


def test_without_its_first_key_frame_a_file_begins_at_the_next(tmp_path, numbered_frames, frame_numbers):
    path, options = tmp_path / "a.mp4", X264 | {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2"}
    write(path, numbered_frames(36), options=options, left_out=[0])
    numbers = frame_numbers(consistent(path))
    assert numbers[-24:] == list(range(12, 36))


def test_a_missing_key_frame_makes_no_copies(tmp_path, numbered_frames, frame_numbers):
    path, options = tmp_path / "a.mp4", X264 | {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2"}
    packets = write(path, numbered_frames(36), options=options)
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    write(path, numbered_frames(36), options=options, left_out=[keys[1]])
    try:
        numbers = frame_numbers(read_frames(path))
    except VideoError:
        return
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("name", "frames"), [("nokey2.mp4", 20), ("dropkey.mp4", 22), ("h264enc.avi", 20), ("xvid.avi", 18)]
)
def test_field_files_are_read_as_shown(shared_data, name, frames):
    whole = consistent(shared_data / "field" / name)
    assert len(whole) == frames
    assert np.abs(np.diff(whole.astype(int), axis=0)).reshape(frames - 1, -1).max(1).min() > 0, "copies"


def test_field_file_with_corrupt_frames_is_refused(shared_data):
    path = shared_data / "field" / "flip4_1.mp4"
    for read in (read_frames, lambda path: list(iterate_frames(path))):
        with pytest.raises(VideoError, match="frame 20 is corrupt"):
            read(path)
    assert len(read_frames(path, count=10)) == 10


def test_what_follows_a_corrupt_frame_is_refused_up_to_the_next_key_frame(tmp_path):
    path, options = tmp_path / "a.mp4", X264 | {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0"}
    write(path, np.random.default_rng(0).integers(0, 255, (36, 64, 96, 3)).astype(np.uint8), options=options)
    victim = packets_of(path)[15]
    data = bytearray(path.read_bytes())
    data[victim.pos + victim.size // 2 : victim.pos + victim.size] = bytes(victim.size - victim.size // 2)
    path.write_bytes(data)
    assert len(read_frames(path, count=15)) == 15
    for number in (15, 16, 23):
        with pytest.raises(VideoError, match="damaged"):
            read_frames(path, [number])
    assert len(read_frames(path, start=24)) == 12


def second_stream(path, default, frames):
    """Two streams of numbered greys, 64x48 and 96x64, of which one is the default."""
    with av.open(str(path), "w", format="matroska") as file:
        streams = []
        for size in ((64, 48), (96, 64)):
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt, stream.options = *size, "yuv420p", X264
            streams.append(stream)
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for stream in streams:
            for pixels in frames:
                picture = np.ascontiguousarray(np.broadcast_to(pixels[:1, :1], (stream.height, stream.width, 3)))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())


@pytest.mark.parametrize(("default", "width"), [(0, 64), (1, 96), (None, 96)])
def test_the_default_stream_is_taken(tmp_path, default, width, numbered_frames, frame_numbers):
    second_stream(tmp_path / "a.mkv", default, numbered_frames(8))
    assert probe(tmp_path / "a.mkv").width == width
    assert frame_numbers(read_frames(tmp_path / "a.mkv", [0, 7])) == [0, 7]
    assert read_frames(tmp_path / "a.mkv").shape[2] == width


def test_a_cover_picture_is_no_video(tmp_path, numbered_frames):
    path = tmp_path / "a.mp4"
    for with_video in (True, False):
        with av.open(str(path), "w") as file:
            cover = file.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt, cover.disposition = 320, 240, "yuvj420p", Disposition.attached_pic
            streams = [(cover, np.zeros((1, 240, 320, 3), np.uint8))]
            if with_video:
                video = file.add_stream("libx264", rate=10)
                video.width, video.height, video.pix_fmt, video.options = 64, 48, "yuv420p", X264
                streams.append((video, numbered_frames(6)))
            else:
                sound = file.add_stream("aac", rate=44100)
            packets = []
            for stream, frames in streams:
                for pixels in frames:
                    packets += stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))
                packets += stream.encode()
            if not with_video:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), format="s16", layout="mono")
                silence.sample_rate = 44100
                packets += [*sound.encode(silence), *sound.encode()]
            for packet in packets:
                file.mux(packet)
        if with_video:
            assert (probe(path).width, probe(path).frames) == (64, 6)
        else:
            with pytest.raises(VideoError, match="no video stream, only a cover picture"):
                probe(path)


def resized(path, codec, options, sizes=((64, 96), (48, 64))):
    """The packets of two encodings of different size in one stream."""
    parts = [path.with_name(f"{number}{path.suffix}") for number in range(2)]
    for part, size in zip(parts, sizes, strict=True):
        write(part, noisy(12, *size), codec, options)
    if path.suffix == ".ts":
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        return
    with av.open(str(path), "w", format="matroska") as file:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or file.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + 1200 * number, packet.pts + 1200 * number
                        packet.stream = stream
                        file.mux(packet)


INBAND = X264 | {"x264-params": "bframes=0:repeat-headers=1"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.ts", "mpeg2video", {}),
        ("a.ts", "libx264", INBAND),
        ("a.mkv", "libx264", INBAND),
        ("a.mkv", "libvpx", {}),
        ("a.mkv", "libvpx-vp9", {}),
    ],
)
def test_a_picture_size_that_changes_is_refused_everywhere(tmp_path, name, codec, options):
    path = tmp_path / name
    resized(path, codec, options)
    for read in (probe, timestamps, read_frames, lambda p: read_frames(p, [0]), lambda p: list(iterate_frames(p))):
        with pytest.raises(VideoError, match="it changes the size of its picture, from 96x64 to 64x48: convert it"):
            read(path)
    if shutil.which("ffmpeg"):  # the advice works
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, tmp_path / "new.mp4"], check=True, timeout=60)
        assert (probe(tmp_path / "new.mp4").width, probe(tmp_path / "new.mp4").height) == (96, 64)


def test_equal_parameter_sets_in_the_stream_change_nothing(tmp_path):
    resized(tmp_path / "a.mkv", "libx264", INBAND, sizes=((64, 96), (64, 96)))
    assert len(consistent(tmp_path / "a.mkv")) == 24


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_time_lapses(tmp_path, name, numbered_frames, frame_numbers):
    write(tmp_path / name, numbered_frames(5), times=[3600 * k for k in range(5)], base=Fraction(1))
    index = index_packets(tmp_path / name)
    assert index.info.fps == pytest.approx(1 / 3600)
    assert index.seconds == pytest.approx(3600 * np.arange(5))
    with VideoWriter(tmp_path / "b.mp4", index.info.fps) as writer:
        writer.write(read_frames(tmp_path / name))
    assert timestamps(tmp_path / "b.mp4") == pytest.approx(3600 * np.arange(5))
    assert frame_numbers(read_frames(tmp_path / "b.mp4", fps=1 / 7200)) == [0, 2, 4]


def test_joined_transport_streams_run_on(tmp_path, numbered_frames, frame_numbers):
    parts = []
    for number, first in enumerate((0, 1_000_000, 500)):  # ms: the clock jumps ahead, then back
        part = tmp_path / f"{number}.ts"
        frames = numbered_frames(12, first=12 * number)
        write(part, frames, options=X264 | {"bf": "2"}, times=[first + 100 * k for k in range(12)])
        parts.append(part.read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    assert frame_numbers(consistent(tmp_path / "a.ts")) == list(range(36))
    assert timestamps(tmp_path / "a.ts") == pytest.approx(np.arange(36) / 10)
    assert probe(tmp_path / "a.ts").fps == pytest.approx(10)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_times_below_zero(tmp_path, name, numbered_frames, frame_numbers):
    times = [100 * k - 250 for k in range(8)]
    write(tmp_path / name, numbered_frames(8), times=times, avoid_negative_ts="disabled")
    index = index_packets(tmp_path / name)
    assert float(index.pts[0] * index.time_base) == pytest.approx(-0.25)
    assert index.origin == index.pts[0]
    assert index.seconds == pytest.approx(np.arange(8) / 10)
    assert frame_numbers(consistent(tmp_path / name)) == list(range(8))


def test_titles_in_another_encoding(tmp_path, numbered_frames):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", format="matroska") as file:
        file.metadata["title"] = "caf\u00e9"
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", X264
        for pixels in numbered_frames(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes()
    assert "caf\u00e9".encode() in data
    path.write_bytes(data.replace("caf\u00e9".encode(), b"caf\xe9 "))
    assert probe(path).frames == 4


def test_a_gif_without_its_end_is_truncated(tmp_path):
    path = tmp_path / "a.gif"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for pixels in noisy(6, 48, 64):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="rgb8")))
        file.mux(stream.encode())
    assert len(consistent(path)) == 6
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_empty_packets_show_nothing(tmp_path, numbered_frames, frame_numbers):
    write(tmp_path / "whole.mkv", numbered_frames(12), "mpeg4", {"qmax": "2"})
    with av.open(str(tmp_path / "whole.mkv")) as source, av.open(str(tmp_path / "a.nut"), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                if number == 5:
                    empty = av.Packet(b"")
                    empty.pts, empty.dts, empty.time_base, empty.stream = (
                        packet.pts,
                        packet.dts,
                        packet.time_base,
                        stream,
                    )
                    packet = empty
                packet.stream = stream
                file.mux(packet)
    with av.open(str(tmp_path / "a.nut")) as file:
        assert any(not packet.size and packet.pts is not None for packet in file.demux(video=0))
    numbers = frame_numbers(consistent(tmp_path / "a.nut"))
    assert numbers == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
