"""Sound that is damaged, unusual or crashes its decoder: it keeps its time, or is left out, and never costs more."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from icve.data.media import prepared_sound, sound
from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.video import VideoWriter, read_frames

RATE = 48000
FRAMES = np.full((20, 32, 48, 3), 100, np.uint8)  # two seconds


def tones(layout: str, seconds: float = 2.0) -> np.ndarray:
    """(n, C) int16, channel k sounding at 200 + 100 k Hz."""
    time = np.arange(int(RATE * seconds)) / RATE
    channels = len(av.AudioLayout(layout).channels)
    return np.stack([8000 * np.sin(2 * np.pi * (200 + 100 * k) * time) for k in range(channels)], 1).astype(np.int16)


def with_sound(path, codec, wave, layout, delay=0.0, tracks=1, frames=FRAMES):
    """A video at 10 fps with tracks of the sound (n, C) int16, which begins `delay` seconds after the picture."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt, video.gop_size = 48, 32, "yuv420p", 10
        sounds = [container.add_stream(codec, rate=RATE) for _ in range(tracks)]
        for stream in sounds:
            stream.layout = layout
        for number, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = number, Fraction(1, 10)
            container.mux(video.encode(shown))
        container.mux(video.encode())
        for stream in sounds:
            for start in range(0, len(wave), 1024):
                part = np.ascontiguousarray(wave[start : start + 1024]).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = RATE, start + round(delay * RATE), Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def rewritten(tmp_path, source, *part) -> tuple[list[str], list[tuple[str, float, np.ndarray]]]:
    """What is said of a source's sound, and the tracks of the result: layout, start in seconds and samples (n, C)."""
    prepared = PreparedSound(source, tmp_path / "sound.tmp", *part)
    with prepared, VideoWriter(tmp_path / "out.mp4", 10, sound=prepared) as writer:
        writer.write(FRAMES)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []
    assert len(read_frames(tmp_path / "out.mp4")) == len(FRAMES)
    found = []
    with av.open(str(tmp_path / "out.mp4")) as container:
        count = len(container.streams.audio)
    for number in range(count):
        with av.open(str(tmp_path / "out.mp4")) as container:
            stream = container.streams.audio[number]
            channels, resampler = stream.codec_context.channels, av.AudioResampler(format="flt", rate=RATE)
            frames = list(container.decode(stream))
            parts = [part for frame in frames for part in resampler.resample(frame)]
            wave = [np.frombuffer(part.planes[0], np.float32, part.samples * channels) for part in parts]
            wave = np.concatenate(wave).reshape(-1, channels)
            found.append((stream.codec_context.layout.name, float(frames[0].pts * frames[0].time_base), wave))
    return writer.notes, found


def frequencies(wave: np.ndarray) -> list[int]:
    """Main frequency of each channel in Hz, over one second in the middle."""
    return np.abs(np.fft.rfft(wave[RATE // 2 : RATE // 2 + RATE], axis=0)).argmax(0).tolist()


@pytest.mark.parametrize(
    ("name", "layout", "kept", "heard"),
    [
        ("a.mov", "mono", "mono", [200]),
        ("a.mov", "stereo", "stereo", [200, 300]),
        ("a.mov", "5.1", "5.1", [200, 300, 400, None, 600, 700]),
        ("a.mov", "5.1(side)", "5.1", [200, 300, 400, None, 600, 700]),
        ("a.mov", "7.1", "7.1", [200, 300, 400, None, 600, 700, 800, 900]),  # stored in an order of its own
        ("a.mkv", "5.1", "5.1", [200, 300, 400, None, 600, 700]),
        ("a.mov", "6.1", "5.1", [200, 300, 400, None, 700, 800]),
    ],
)
def test_every_speaker_keeps_its_channel(tmp_path, name, layout, kept, heard):
    source = with_sound(tmp_path / name, "pcm_s16le", tones(layout), layout)
    _, ((found, start, wave),) = rewritten(tmp_path, source)
    assert found == kept
    assert abs(start) < 0.03
    assert abs(len(wave) / RATE - 2) < 0.06
    for frequency, expected in zip(frequencies(wave), heard, strict=True):
        assert expected in (None, frequency)  # of the low-frequency channel AAC keeps little


def test_a_file_whose_channel_layout_crashes_pyav(shared_data, tmp_path):
    path = shared_data / "field" / "pcm8.mov"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    notes, ((layout, _, wave),) = rewritten(tmp_path, path)
    assert (layout, notes) == ("7.1", [])
    assert frequencies(wave)[0] == 440


def damaged(path, numbers=slice(None)):
    """Overwrite packets of the first sound track; returns how many it has."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    data = path.read_bytes()
    for packet in packets[numbers]:
        data = data.replace(packet, bytes([0x55] * len(packet)), 1)
    path.write_bytes(data)
    return len(packets)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "mp2"), ("a.mp4", "ac3")])
def test_packets_that_do_not_decode_are_silent_and_shift_nothing(tmp_path, name, codec):
    wave = np.random.default_rng(0).integers(-9, 10, (2 * RATE, 2)).astype(np.int16)  # no two packets are the same
    wave[: RATE // 4] = tones("stereo")[: RATE // 4]
    wave[3 * RATE // 2 :] = tones("stereo")[3 * RATE // 2 :]
    source = with_sound(tmp_path / name, codec, wave, "stereo")
    damaged(source, slice(20, 40))
    notes, ((_, start, heard),) = rewritten(tmp_path, source)
    assert len(notes) == 1
    assert "packets of the sound do not decode" in notes[0]
    loud = np.flatnonzero(np.abs(heard[:, 0]) > 0.1) / RATE + start
    assert abs(loud[loud > 0.6].min() - 1.5) < 0.01
    assert abs(start + len(heard) / RATE - 2) < 0.08


def test_missing_packets_shift_nothing(tmp_path):
    source = with_sound(tmp_path / "whole.mkv", "aac", tones("mono"), "mono")
    with av.open(str(source)) as container, av.open(str(tmp_path / "a.mkv"), "w") as gappy:
        streams = {stream.index: gappy.add_stream_from_template(stream) for stream in container.streams}
        number = 0
        for packet in container.demux():
            if packet.dts is not None:
                sound_packet = packet.stream.type == "audio"
                number += sound_packet
                packet.stream = streams[packet.stream.index]
                if not (sound_packet and 30 <= number < 50):
                    gappy.mux(packet)
    notes, ((_, start, wave),) = rewritten(tmp_path, tmp_path / "a.mkv")
    assert notes == ["0.43 s are missing in the sound and are silent."]
    assert abs(start + len(wave) / RATE - 2) < 0.08


@pytest.mark.parametrize("codec", ["aac", "mp2"])
def test_times_that_begin_anew_follow_what_was_before(tmp_path, codec):
    part = with_sound(tmp_path / "part.ts", codec, tones("mono"), "mono").read_bytes()
    (tmp_path / "a.ts").write_bytes(part + part)
    notes, ((_, _, wave),) = rewritten(tmp_path, tmp_path / "a.ts")
    assert notes == []
    assert abs(len(wave) / RATE - 4) < 0.15


def test_titles_that_are_no_utf8_cost_nothing(tmp_path):
    source = with_sound(tmp_path / "a.mkv", "aac", tones("mono"), "mono")
    data = source.read_bytes()
    assert b"Lavf" in data  # the name of the program that wrote it
    source.write_bytes(data.replace(b"Lavf", b"L\xe9vf"))
    notes, ((_, _, wave),) = rewritten(tmp_path, source)
    assert notes == []
    assert frequencies(wave) == [200]


def test_sound_keeps_its_start(tmp_path):
    source = with_sound(tmp_path / "a.mov", "pcm_s16le", tones("mono", 1.0), "mono", delay=0.5)
    notes, ((_, start, wave),) = rewritten(tmp_path, source)
    assert notes == []
    onset = start + np.flatnonzero(np.abs(wave[:, 0]) > 0.1)[0] / RATE
    assert abs(onset - 0.5) < 0.005


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mov", "pcm_s16le")])
def test_a_part_is_cut_at_its_times(tmp_path, name, codec):
    wave = np.zeros((2 * RATE, 1), np.int16)
    wave[RATE:] = tones("mono")[RATE:]
    source = with_sound(tmp_path / name, codec, wave, "mono")
    _, ((_, start, heard),) = rewritten(tmp_path, source, 0.6, 1.6)
    onset = start + np.flatnonzero(np.abs(heard[:, 0]) > 0.1)[0] / RATE
    assert abs(onset - 0.4) < 0.005
    assert abs(start + len(heard) / RATE - 1.0) < 0.06


@pytest.mark.parametrize(
    ("name", "codec", "delay", "partly"),
    [
        ("a.mp4", "aac", 0.0, True),
        ("a.mp4", "libmp3lame", 0.0, True),
        ("a.mov", "pcm_s16le", 0.0, True),
        ("a.mkv", "libopus", 0.0, True),
        ("a.mkv", "flac", 0.0, True),
        ("a.avi", "libmp3lame", 0.0, True),
        ("a.avi", "pcm_s16le", 0.0, True),
        ("a.mkv", "aac", 5.0, False),  # nothing is there before the range
        ("a.ts", "aac", 0.0, False),  # a clock that may jump
    ],
)
def test_what_is_read_of_a_part_is_what_reading_the_whole_file_gives(tmp_path, monkeypatch, name, codec, delay, partly):
    noise = np.random.default_rng(0).integers(-9000, 9000, (8 * RATE, 2)).astype(np.int16)
    frames = FRAMES[:1].repeat(80, axis=0)
    source = with_sound(tmp_path / name, codec, noise, "stereo", delay, tracks=2, frames=frames)
    time, looked_at = sound._time, []
    monkeypatch.setattr(sound, "_time", lambda packet: looked_at.append(packet.dts) or time(packet))

    def prepared(begin, end):
        looked_at.clear()
        result = sound.prepare(str(source), begin, end, str(tmp_path / "out.mp4"))
        return result, (tmp_path / "out.mp4").read_bytes(), len(looked_at)

    for begin, end in [(4.3, 5.7), (0.0, 2.0), (6.123, None)]:
        *found, count = prepared(begin, end)
        with monkeypatch.context() as context:
            context.setattr(sound, "_SEEK", 1e6)
            *expected, whole = prepared(begin, end)
        assert found == expected
        assert not partly or count < 0.75 * whole


def test_a_track_that_does_not_decode_costs_only_itself(tmp_path):
    source = with_sound(tmp_path / "a.mp4", "aac", tones("stereo"), "stereo", tracks=2)
    damaged(source)
    notes, tracks = rewritten(tmp_path, source)
    assert notes == ["Sound track 1 is left out: none of its packets decode."]
    assert len(tracks) == 1
    assert frequencies(tracks[0][2]) == [200, 300]


def process(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("code", ["import os; os.abort()", "import time; time.sleep(100)", "print('nonsense')"])
def test_a_crash_or_a_hang_costs_the_sound_alone(tmp_path, monkeypatch, code):
    monkeypatch.setattr(sound, "start", lambda *_, **__: process(code))
    monkeypatch.setattr(prepared_sound, "_LEAST_SECONDS", -1.0)
    source = with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono")
    notes, tracks = rewritten(tmp_path, source)
    assert tracks == []
    assert notes == ["The sound is left out: FFmpeg crashes or hangs when it reads it."]


def test_where_decoding_crashes_sound_is_copied_unchecked(tmp_path, monkeypatch):
    start = sound.start

    def crash_first(*arguments, decode, seconds):
        return process("import os; os.abort()") if decode else start(*arguments, decode=decode, seconds=seconds)

    monkeypatch.setattr(sound, "start", crash_first)
    source = with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono")
    notes, ((_, _, wave),) = rewritten(tmp_path, source)
    assert "copied unchecked" in notes[0]
    assert frequencies(wave) == [200]
    source = with_sound(tmp_path / "a.mov", "pcm_s16le", tones("mono"), "mono")
    notes, tracks = rewritten(tmp_path, source)
    assert tracks == []
    assert notes == ["The sound is left out: FFmpeg crashes or hangs while it decodes it."]


def test_a_process_that_cannot_be_started_costs_the_sound_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    source = with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono")
    notes, tracks = rewritten(tmp_path, source)
    assert tracks == []
    assert notes == ["The sound is left out: No such file or directory."]
