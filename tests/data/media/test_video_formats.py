"""Colours, alpha, times and sound come back from every format; a folder of frames is there whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.video import VideoWriter, probe, read_frames, resize_crop, timestamps, write_video
from icve.data.media.video_formats import FORMATS, formats_with_alpha
from icve.runtime.atomic import remove_abandoned
from tests.browser import probe_page
from tests.data.media.test_sound import FRAMES, RATE, tones, with_sound

ALPHA = formats_with_alpha()
FILES = [name for name, kind in FORMATS.items() if not kind.is_folder]


def clip(frames: int = 4, height: int = 48, width: int = 512) -> np.ndarray:
    """(F, H, W, 4) uint8: smooth colours, and every level of alpha from left to right, moving."""
    y, x = np.mgrid[0:height, 0:width]
    colours = [np.stack([60 + x / 4, 200 - y, 80 + (x + y) / 6], -1) + 4 * n for n in range(frames)]
    alpha = [np.clip(x / 2 + 9 * n, 0, 255)[..., None] for n in range(frames)]
    return np.concatenate([np.stack(colours), np.stack(alpha)], -1).astype(np.uint8)


def written(folder, name, frames, **options):
    path = folder / f"a{FORMATS[name].suffix}"
    with VideoWriter(path, 10, crf=8, format=name, **options) as writer:
        writer.write(frames)
    return path


def with_alpha(path, name) -> np.ndarray:
    """Frames (F, H, W, 4) float of a file: alpha as it is stored, brought to 0..255."""
    if FORMATS[name].is_folder:
        return np.stack(list(iterate_png_frames(path))).astype(float)
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # FFmpeg's own VP9 decoder passes alpha over.
        decoder = av.CodecContext.create("libvpx-vp9", "r") if name == "vp9" else stream.codec_context
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                plane, bits = frame.planes[3], frame.format.components[3].bits
                stored = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16)
                stored = stored.reshape(plane.height, -1)[:, : frame.width] * (255 / (2**bits - 1))
                found.append(np.concatenate([frame.to_ndarray(format="rgb24"), stored[..., None]], -1))
    return np.stack(found)


# Largest and mean difference of colours in levels, and of alpha.
LOSS = {"prores4444": (2, 0.1, 0.25, 0.1), "vp9": (10, 1.5, 5, 0.5), "png": (0, 0, 0, 0)}


@pytest.mark.parametrize("name", ALPHA)
def test_alpha_and_colours_come_back(tmp_path, name):
    frames = clip()
    difference = np.abs(with_alpha(written(tmp_path, name, frames), name) - frames)
    colours, alpha = difference[..., :3], difference[..., 3]
    assert colours.max() <= LOSS[name][0]
    assert colours.mean() <= LOSS[name][1]
    assert alpha.max() <= LOSS[name][2]
    assert alpha.mean() <= LOSS[name][3]


def test_opaque_is_opaque_and_transparent_transparent_in_prores(tmp_path):
    frames = clip(1)
    frames[..., :256, 3], frames[..., 256:, 3] = 0, 255
    found = with_alpha(written(tmp_path, "prores4444", frames), "prores4444")[..., 3]
    assert found[..., :256].max() == 0
    assert found[..., 256:].min() == 255


@pytest.mark.parametrize("name", FORMATS)
def test_frames_without_alpha_are_stored_without_and_read_as_they_were(tmp_path, name):
    frames = clip()[..., :3]
    path = written(tmp_path, name, frames)
    if FORMATS[name].is_folder:
        found = np.stack(list(iterate_png_frames(path)))
        assert np.array_equal(found, frames)
        return
    difference = np.abs(read_frames(path).astype(int) - frames)
    assert (difference.max(), difference.mean()) <= (12, 2)
    with av.open(str(path)) as container:
        assert "yuva" not in next(container.decode(video=0)).format.name


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_frames_give_the_same_bytes(tmp_path, name):
    frames = clip()[..., : 3 if name == "mp4" else 4]
    made = []
    for folder in ("one", "two"):
        path = written(tmp_path / folder, name, frames)
        made.append([file.read_bytes() for file in sorted(path.iterdir() if path.is_dir() else [path])])
    assert made[0] == made[1]


@pytest.mark.parametrize("name", FILES)
def test_times_and_colour_tags(tmp_path, name):
    times = np.array([0, 40, 41, 1000])
    path = tmp_path / f"a{FORMATS[name].suffix}"
    with VideoWriter(path, 25, Fraction(1, 1000), format=name) as writer:
        writer.write(clip()[..., :3], times)
    assert np.allclose(timestamps(path), times / 1000, atol=5e-4)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        found = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    assert tuple(map(int, found)) == (1, 1, 1, 1)  # BT.709, limited


@pytest.mark.parametrize("name", FORMATS)
def test_odd_sizes_and_pixels_that_are_not_square(tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    with VideoWriter(path, 10, sample_aspect=Fraction(4, 3), format=name) as writer:
        writer.write(clip(2, 31, 47)[..., :3])
    grown = (32, 48) if name in ("mp4", "vp9") else (31, 47)
    if FORMATS[name].is_folder:
        assert next(iterate_png_frames(path)).shape == (*grown, 3)
        assert b"pHYs\0\0\0\4\0\0\0\3\0" in (path / "000000.png").read_bytes()
        return
    info = probe(path)
    assert (info.height, info.width) == grown
    assert info.sample_aspect == (1 if name == "vp9" else Fraction(4, 3))
    square = ["WebM shows the pixels square, and not 4/3 as wide as high."]
    assert writer.notes == (square if name == "vp9" else [])


def refused(path, message, *parts, **options):
    def write():
        with VideoWriter(path, 10, **options) as writer:
            for part in parts:
                writer.write(part)

    with pytest.raises((ValueError, OSError), match=message):
        write()
    return sorted(file.name for file in path.parent.iterdir())


def test_what_formats_do_not_hold_is_refused_in_a_sentence(tmp_path):
    frames = clip(2)
    message = r"^MP4 holds no alpha: choose one of the formats prores4444, vp9, png\.$"
    assert refused(tmp_path / "a.mp4", message, frames) == []
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, 10)
    for name in ALPHA:
        message = "Either all frames of a video have alpha, or none has."
        assert refused(tmp_path / "a", message, frames, frames[..., :3], format=name) == []
        assert refused(tmp_path / "a", "uint8", frames[..., :2], format=name) == []
    message = "There is no video format 'gif': choose one of mp4, prores4444, vp9, png."
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.gif", frames, 10, format="gif")


def test_a_folder_of_frames_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "50% a.frames"
    write_video(path, clip(3), 10, format="png")
    before = sorted(file.name for file in path.iterdir())
    assert before == ["000000.png", "000001.png", "000002.png"]
    message = "uint8"
    assert refused(path, message, clip(2), clip(2).astype(float), format="png") == [path.name]
    assert sorted(file.name for file in path.iterdir()) == before
    write_video(path, clip(2), 10, format="png")
    assert len(list(path.iterdir())) == 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_with_anything_else_stays(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    assert refused(path, "is not a folder of frames alone: move it away", clip(1), format="png") == ["a"]
    assert (path / "notes.txt").read_text() == "mine"
    (tmp_path / "b").write_text("mine")
    assert refused(tmp_path / "b", "is not a folder of frames alone", clip(1), format="png") == ["a", "b"]


KILLED = """
import sys, numpy as np
from icve.data.media.video import VideoWriter
with VideoWriter(sys.argv[1], 10, format="png") as writer:
    while True:
        writer.write(np.zeros((8, 64, 64, 4), np.uint8))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_a_kill_leaves_no_folder_and_its_remains_are_removed(tmp_path):
    path = tmp_path / "a.frames"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    try:
        while len(list(tmp_path.glob(".a.frames.*/*.png"))) < 20:
            assert process.poll() is None
            time.sleep(0.02)
        remove_abandoned(path)
        assert len(list(tmp_path.iterdir())) == 1  # of a living process
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not path.exists()
    remove_abandoned(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec", "layout", "kept", "speakers"),
    [
        ("prores4444", "aac", "stereo", "aac", "stereo"),
        ("prores4444", "libopus", "stereo", "aac", "stereo"),
        ("vp9", "libopus", "stereo", "opus", "stereo"),
        ("vp9", "aac", "stereo", "opus", "stereo"),
        ("vp9", "flac", "5.1", "opus", "5.1"),
        ("vp9", "flac", "4.0", "opus", "5.1"),  # a layout that the encoder refuses
        ("vp9", "flac", "5.0", "opus", "5.1"),  # and one whose speakers it swaps
    ],
)
def test_sound_is_what_the_container_holds(tmp_path, name, codec, layout, kept, speakers):
    source = with_sound(tmp_path / "a.mkv", codec, tones(layout), layout)
    path, kind = tmp_path / f"out{FORMATS[name].suffix}", FORMATS[name].sound
    sound = PreparedSound(source, tmp_path / "sound.tmp", kind=kind)
    with sound, VideoWriter(path, 10, sound=sound, format=name) as writer:
        writer.write(FRAMES)
    assert writer.notes == [] or layout == "4.0"
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert (stream.codec_context.name, stream.codec_context.layout.name) == (kept, speakers)
        resampler = av.AudioResampler(format="flt", rate=RATE)
        frames = list(container.decode(stream))
        parts = [part for frame in frames for part in resampler.resample(frame)]
        channels = stream.codec_context.channels
    wave = np.concatenate([np.frombuffer(part.planes[0], np.float32, part.samples * channels) for part in parts])
    wave = wave.reshape(-1, channels)
    assert abs(frames[0].time) < 0.01
    assert abs(len(wave) / RATE - 2) < 0.05
    loudest = np.abs(np.fft.rfft(wave, axis=0)).argmax(0) * RATE / len(wave)
    expected = {"stereo": [200, 300], "5.1": [200, 300, 400, 500, 600, 700], "5.0": [200, 300, 400, None, 500, 600]}
    expected = expected | {"4.0": [200, 300, 400, None, 500, 500]}
    for found, wanted in zip(loudest, expected[layout], strict=True):
        assert wanted is None or abs(found - wanted) < 3


def test_frames_have_no_sound_and_that_is_told_where_there_is_any(tmp_path):
    noted = []
    for source in (with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono"), written(tmp_path, "vp9", clip())):
        sound = PreparedSound(source, tmp_path / "sound.tmp", kind=None)
        with sound, VideoWriter(tmp_path / "out", 10, sound=sound, format="png") as writer:
            writer.write(FRAMES)
        noted.append(writer.notes)
    assert noted == [["PNG files hold no sound."], []]


def test_real_pictures_survive(tmp_path, shared_data):
    """The loss of the formats beside that of MP4, on a clip of a camera."""
    frames = resize_crop(
        read_frames(shared_data / "videos" / "pairs" / "replace_swan_cat_source.mp4", count=6), (240, 416)
    )
    loss = {}
    for name in FILES:
        write_video(tmp_path / name, frames, 20, crf=16, format=name)
        loss[name] = np.abs(read_frames(tmp_path / name).astype(int) - frames).mean()
    assert loss["prores4444"] < 0.7 < loss["vp9"] < 2 * loss["mp4"] < 6


def test_browsers_show_what_is_behind_a_transparent_webm(tmp_path):
    frames = np.full((10, 64, 128, 4), 255, np.uint8)
    frames[..., 1:3] = 0
    frames[:, :, 64:, 3] = 0
    write_video(tmp_path / "a.webm", frames, 10, format="vp9")
    page = '<body><video src="a.webm" muted autoplay loop></video></body>'
    script = """
      const video = document.querySelector("video"), canvas = document.createElement("canvas");
      canvas.width = 128; canvas.height = 64;
      const look = () => {
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0);
        done([32, 96].map(x => [...context.getImageData(x, 32, 1, 1).data]));
      };
      video.requestVideoFrameCallback ? video.requestVideoFrameCallback(look) : video.onplaying = look;
    """
    (red, nothing) = probe_page(page, script, tmp_path)
    assert np.allclose(red, [255, 0, 0, 255], atol=8)
    assert nothing[3] <= 4
