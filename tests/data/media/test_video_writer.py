from fractions import Fraction

import av
import numpy as np
import pytest

from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.video import VideoWriter, probe, read_frames, timestamps
from icve.data.media.video_index import index_packets


def picture(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(30, 220, width)[None, None, :, None] + np.arange(frames)[:, None, None, None]
    return np.broadcast_to(ramp, (frames, height, width, 3)).astype(np.uint8)


def with_sound(path, codec: str, seconds: float = 2.0, container_format: str | None = None, delay: float = 0.0):
    """A video of 10 frames per second whose picture begins `delay` after its sound, a 440 Hz tone."""
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        sound = container.add_stream(codec, rate=44100)
        sound.layout = "mono"
        for number, frame in enumerate(picture(int(seconds * 10))):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = number + round(delay * 10), Fraction(1, 10)
            container.mux(video.encode(shown))
        container.mux(video.encode())
        tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(int(44100 * seconds)) / 44100)).astype(np.int16)
        wave = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        wave.sample_rate, wave.pts, wave.time_base = 44100, 0, Fraction(1, 44100)
        resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=44100, frame_size=1024)
        for part in [*resampler.resample(wave), *resampler.resample(None), None]:
            container.mux(sound.encode(part))
    return path


def heard(path) -> tuple[str, float, float, float]:
    """Codec, start and length in seconds, and main frequency of a file's sound."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        frames = list(container.decode(stream))
        wave = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float64)
        rate = stream.codec_context.sample_rate
        spectrum = np.abs(np.fft.rfft(wave))
        start = float(frames[0].pts * frames[0].time_base)
        return stream.codec_context.name, start, len(wave) / rate, float(spectrum.argmax()) * rate / len(wave)


def test_variable_timestamps_come_back(tmp_path):
    times = np.array([0, 40, 41, 200, 1000, 61000])
    with VideoWriter(tmp_path / "a.mp4", 25, Fraction(1, 1000)) as writer:
        writer.write(picture(4), times[:4])
        writer.write(picture(2), times[4:])
    assert np.allclose(timestamps(tmp_path / "a.mp4"), times / 1000, atol=5e-4)
    assert probe(tmp_path / "a.mp4").frames == 6


@pytest.mark.parametrize(("codec", "name", "kept"), [("aac", "a.mp4", "aac"), ("pcm_s16le", "a.mov", "aac")])
def test_sound_is_copied_or_encoded(tmp_path, codec, name, kept):
    source = with_sound(tmp_path / name, codec)
    sound = PreparedSound(source, tmp_path / "sound")
    with sound, VideoWriter(tmp_path / "out.mp4", 10, sound=sound) as writer:
        writer.write(picture(20))
    codec_found, start, seconds, frequency = heard(tmp_path / "out.mp4")
    assert codec_found == kept
    assert abs(start) < 0.05
    assert abs(seconds - 2) < 0.1
    assert abs(frequency - 440) < 2
    if codec == "aac":  # not encoded a second time
        packets = []
        for path in (source, tmp_path / "out.mp4"):
            with av.open(str(path)) as container:
                packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
        assert packets[0] == packets[1]


def test_part_of_a_sound(tmp_path):
    source = with_sound(tmp_path / "a.mp4", "aac")
    sound = PreparedSound(source, tmp_path / "sound", 0.5, 1.5)
    with sound, VideoWriter(tmp_path / "out.mp4", 10, sound=sound) as writer:
        writer.write(picture(10))
    _, start, seconds, _ = heard(tmp_path / "out.mp4")
    assert abs(start) < 0.05
    assert abs(seconds - 1) < 0.1


def test_picture_keeps_its_place_beside_the_sound(tmp_path):
    source = with_sound(tmp_path / "a.mp4", "aac", delay=0.5)
    index = index_packets(source)
    sound = PreparedSound(source, tmp_path / "sound")
    with sound, VideoWriter(tmp_path / "out.mp4", 10, index.time_base, sound=sound) as writer:
        writer.write(picture(20), index.pts - index.origin)
    begins = []
    for kind in ("video", "audio"):
        with av.open(str(tmp_path / "out.mp4")) as container:
            begins.append(next(container.decode(**{kind: 0})).time)
    assert abs(begins[0] - begins[1] - 0.5) < 0.05


def test_pixel_aspect_and_odd_sizes(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10, sample_aspect=Fraction(4, 3)) as writer:
        writer.write(picture(2, 31, 47))
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width, info.sample_aspect) == (32, 48, Fraction(4, 3))
    assert info.displayed == (32, 64)
    assert read_frames(tmp_path / "a.mp4").shape == (2, 32, 48, 3)


def write_until_it_fails(path):
    with VideoWriter(path, 10) as writer:
        writer.write(picture(3))
        writer.write(picture(3).astype(np.float32))


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="uint8"):
        write_until_it_fails(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
