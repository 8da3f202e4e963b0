"""Frames as they are shown: turned, mirrored, tone-mapped and deinterlaced; all others as FFmpeg converts them."""

import math
import struct

import av
import numpy as np
import pytest

from icve.data.media.picture import _progressive, upright
from icve.data.media.video import iterate_frames, probe, read_frames, write_video


def encode(path, frames, codec="libx264", pixels="yuv420p", tags=None, source="rgb24", **options):
    """Write frames at 10 per second; `tags` are numbers of FFmpeg's for the stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = {name.replace("_", "-"): value for name, value in options.items()}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=source)
            if tags:
                for name, value in tags.items():
                    setattr(picture, name, value)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def smooth(height=48, width=64, seed=0):
    """(H, W, 3) uint8 that is unlike all its mirror images."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([255 * across, 255 * down, 127 * (across + down)], -1).astype(np.uint8)


def with_matrix(path, a, b, c, d):
    """Write the display matrix of the video track: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    assert data[at : at + 36] == identity
    data[at : at + 36] = struct.pack(">9i", 65536 * a, 65536 * b, 0, 65536 * c, 65536 * d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: p.swapaxes(0, 1)[:, ::-1]),  # a telephone held upright
        ((0, -1, 1, 0), lambda p: p.swapaxes(0, 1)[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda p: p.swapaxes(0, 1)[::-1, ::-1]),
        ((0, 1, 0, 0), lambda p: p),  # damaged: it would leave nothing of the picture
    ],
)
def test_the_whole_display_matrix_is_applied(tmp_path, matrix, shown):
    path = tmp_path / "a.mp4"
    write_video(path, np.stack([smooth()] * 3), 10, crf=1)
    stored = read_frames(path)
    with_matrix(path, *matrix)
    expected = np.stack([shown(frame) for frame in stored])
    assert np.array_equal(read_frames(path), expected)
    assert np.array_equal(np.concatenate(list(iterate_frames(path))), expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]


def test_a_matrix_of_zeros_turns_nothing(tmp_path):
    write_video(tmp_path / "a.mp4", np.stack([smooth()] * 2), 10)
    stored = read_frames(tmp_path / "a.mp4")
    with_matrix(tmp_path / "a.mp4", 0, 0, 0, 0)
    assert np.array_equal(read_frames(tmp_path / "a.mp4"), stored)


# Tone mapping, written down once more: scalars, from the standards.


def pq(nits):
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(scene):
    return math.sqrt(3 * scene) if scene <= 1 / 12 else 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


def sdr(nits_rgb):
    """Code values 0..255 for light in nits by BT.2020's primaries."""
    to_709 = [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
    light = [max(0, sum(m * n / 203 for m, n in zip(row, nits_rgb, strict=True))) for row in to_709]
    x, j, p = max(light), 0.8, 1000 / 203
    if x > j:  # Möbius: a function of the form k (x + a) / (x + b) through (j, j) with slope 1, and through (p, 1)
        a, b = -j * j * (p - 1) / (j * j - 2 * j + p), (j * j - 2 * j * p + p) / (p - 1)
        light = [value * (b * b + 2 * b * j + j * j) / (b - a) * (x + a) / (x + b) / x for value in light]
    light = [min(1, value) for value in light]
    return [255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in light]


PATCHES = [(0, 0, 0), (1, 1, 1), (26, 26, 26), (100, 100, 100), (203, 203, 203), (600, 600, 600), (1000, 1000, 1000)]
PATCHES += [(150, 40, 20), (20, 120, 60), (10, 20, 100), (500, 300, 100)]


def coded(signal, full):
    """10-bit Y, Cb, Cr of R'G'B' by BT.2020's matrix."""
    r, g, b = signal
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    values = y, (b - y) / 1.8814, (r - y) / 1.4746
    scales = (1023, 1023, 1023) if full else (876, 896, 896)
    return [round(v * s + o) for v, s, o in zip(values, scales, (0 if full else 64, 512, 512), strict=True)]


@pytest.mark.parametrize("kind", ["PQ", "HLG"])
@pytest.mark.parametrize("full", [False, True])
def test_light_comes_out_as_the_standards_say(tmp_path, kind, full):
    planes = np.zeros((3, 16, 16 * len(PATCHES)), np.uint16)
    for number, nits in enumerate(PATCHES):
        if kind == "PQ":
            signal = [pq(n) for n in nits]
        else:  # the inverse of the display's system gamma
            luminance = (0.2627 * nits[0] + 0.6780 * nits[1] + 0.0593 * nits[2]) / 1000
            signal = [hlg(n / 1000 * luminance ** (1 / 1.2 - 1) if n else 0) for n in nits]
        planes[:, :, 16 * number : 16 * number + 16] = np.array(coded(signal, full))[:, None, None]
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": {"PQ": 16, "HLG": 18}[kind], "color_range": 1 + full}
    frame = av.VideoFrame(planes.shape[2], 16, "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((16, plane.line_size // 2), np.uint16)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, planes.shape[2], "yuv444p10le"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
            setattr(frame, name, value)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.mkv").dynamic_range == kind
    shown = read_frames(tmp_path / "a.mkv")[0, 8, 8::16]
    assert np.abs(shown - np.array([sdr(nits) for nits in PATCHES])).max() <= 2
    assert 240 <= shown[4].min() <= shown[4].max() < 250  # diffuse white is nearly white, and highlights have room
    assert shown[6].min() >= 254


def test_a_film_of_pq_is_shown_as_its_white_is(shared_data):
    path = shared_data / "field" / "pq_white203.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    assert read_frames(path).min() > 235


def weave(frames):
    """Interlaced pictures (F, H, W, 3) of 2 F: the even lines of one and the odd lines of the next."""
    woven = frames[0::2].copy()
    woven[:, 1::2] = frames[1::2, 1::2]
    return woven


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_frames_show_one_moment(tmp_path, codec):
    moments = np.full((12, 64, 96, 3), 40, np.uint8)
    for number, moment in enumerate(moments):
        moment[:, 4 + 6 * number : 20 + 6 * number] = (220, 200, 60)
    path = encode(tmp_path / "a.mkv", weave(moments), codec, flags="+ildct+ilme", crf="4", b="8000000", threads="1")
    assert probe(path).interlaced
    shown = read_frames(path)
    assert shown.shape == moments[::2].shape
    assert np.abs(shown[:, :, 2:-2].astype(int) - moments[::2, :, 2:-2]).mean() < 5
    combs = np.abs(np.diff(shown.astype(int), axis=1)).mean()
    assert combs < 2 < np.abs(np.diff(weave(moments).astype(int), axis=1)).mean()
    for start in range(5):  # whatever came before
        assert np.array_equal(read_frames(path, start=start, count=2), shown[start : start + 2])


def test_what_does_not_move_keeps_its_lines(tmp_path):
    frames = np.stack([smooth(64, 96)] * 3)
    path = encode(tmp_path / "a.mkv", frames, flags="+ildct+ilme", crf="1")
    assert np.abs(read_frames(path).astype(int) - frames).mean() < 2


@pytest.mark.parametrize(
    ("pixels", "height"), [("yuv420p", 62), ("yuv420p", 66), ("yuv422p10le", 66), ("nv12", 64), ("yuv444p", 63)]
)
def test_fields_of_any_format_and_height(pixels, height):
    picture = np.repeat(smooth(32, 96), 2, axis=0)[:height]
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    assert np.abs(_progressive(frame).astype(int) - picture).mean() < 4


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv420p10le"])
def test_progressive_pictures_are_those_of_ffmpeg(tmp_path, pixels):
    path = encode(tmp_path / "a.mkv", np.stack([smooth()] * 2), "ffv1", pixels)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert np.array_equal(upright(frame), frame.to_ndarray(format="rgb24"))
