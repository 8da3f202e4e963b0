"""The sound of a source made ready for its results, in a process of its own: what it crashes on costs the sound alone.

A file's sound can crash FFmpeg or PyAV. One kind is certain: PyAV looks at channel layouts by a flat copy, and with
every copy frees the map of a *custom* one (PCM whose channels do not stand in FFmpeg's order), also inside
``decode()``, which corrupts the heap. Here such a layout is looked at once and never freed; but other kinds will be
met, hence the process.

Every packet is decoded. A track that players of the result know and that decodes is copied as it is. Any other is
encoded (as AAC, for WebM as Opus), with silence where packets do not decode, so that what follows keeps its time.

:func:`start` begins such a process, which runs this file as a program.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np

from icve.data.media.channels import LAYOUTS, channel_mix, is_custom
from icve.data.media.media_paths import media_path
from icve.data.media.timeline import JUMP
from icve.data.media.video_stream import clock_may_jump, open_media


@dataclass(frozen=True)
class Kind:
    """Sound that a container takes: codecs that it holds and players know, and the encoder for other sound, with the
    sampling rates and the layouts (:data:`icve.data.media.channels.LAYOUTS`) that it takes."""

    copied: frozenset[str]
    encoder: str = "aac"
    rates: tuple[int, ...] = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
    layouts: frozenset[str] = frozenset(LAYOUTS)


# MP4 holds all of these, so that it serves on the way to the others.
KINDS = {
    "mp4": Kind(frozenset({"aac", "mp3", "opus", "flac", "ac3", "eac3", "alac"})),
    "mov": Kind(frozenset({"aac", "mp3", "ac3", "alac"})),
    # FFmpeg's encoder refuses 4.0 and swaps speakers of 5.0.
    "webm": Kind(
        frozenset({"opus"}), "libopus", (8000, 12000, 16000, 24000, 48000), frozenset(LAYOUTS) - {"4.0", "5.0"}
    ),
}
_PREROLL = 0.25  # seconds decoded before the range: what some decoders need until their sound is right
_SEEK = 1.0  # seconds read before and after the range, where a file is not read from its beginning to its end
# Seconds by which times may differ from a count of samples (Matroska rounds them, AVI's jitter); more is a gap. After a
# packet that does not decode, any difference is.
_JITTER, _EXACT = 0.03, 0.002
_MISSING = 0.1  # seconds without a packet, after which a track is not copied: many players play on without a pause
_RESTART = 1.0  # seconds: times that go back further begin anew, as in joined files
_LONGEST_GAP = 3600.0  # seconds


_never_freed: list[av.AudioLayout] = []


class _LeftOut(Exception):
    """A track that cannot be kept; the message says why."""


class _CannotCopy(Exception):
    """Packets of a track do not decode, or MP4 does not take them."""


class _SeekFailed(Exception):
    """Reading did not begin before the range in every track."""


def start(
    source: str, begin: float, end: float | None, target: str, kind: str, decode: bool, seconds: float
) -> subprocess.Popen:
    """Begin to make ``target``, an MP4 with the sound of ``source`` from ``begin`` to ``end`` (seconds), moved to 0.

    The process prints one line of JSON, ``{"tracks": number written, "notes": [sentences]}``, and ends with status 0.

    Args:
        kind: a key of :data:`KINDS`.
        decode: False copies what can be copied without a look, and leaves out the rest.
        seconds: after which the process ends itself, in case the one that began it is gone.
    """
    arguments = json.dumps([media_path(source), begin, end, media_path(target), kind, decode])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "icve.data.media.sound", arguments, str(max(1, round(seconds)))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def prepare(source: str, begin: float, end: float | None, target: str, kind: str = "mp4", decode: bool = True) -> dict:
    """What the process does. Raises FFmpegError or OSError where a file cannot be read or written at all."""
    job = _Job(source, begin, end, target, KINDS[kind], decode)
    while not job.done():
        pass
    return {"tracks": job.tracks, "notes": [*job.left_out.values(), *job.notes]}


class _Job:
    """A file's sound, written again from its beginning whenever a track turns out to need another treatment."""

    def __init__(self, source: str, begin: float, end: float | None, target: str, kind: Kind, decode: bool) -> None:
        self.source, self.begin, self.end, self.target, self.decode = source, begin, end, target, decode
        self.kind = kind
        self.encode: set[int] = set()  # streams that cannot be copied after all
        self.left_out: dict[int, str] = {}  # streams, and why
        self.notes: list[str] = []
        self.tracks = 0
        self.jumps = False  # whether the format's clock may jump
        self.seeks = begin > _SEEK  # whether reading begins near the range

    def done(self) -> bool:
        """Write the file; False where it has to be done again."""
        self.notes = []
        tracks: dict[int, _Copied | _Encoded] = {}
        # Titles and comments may be in any encoding.
        with (
            open_media(self.source) as file,
            av.open(self.target, "w", format="mp4") as self.out,
        ):
            self.jumps = clock_may_jump(file)
            sounds = file.streams.audio
            names = {
                sound.index: f"sound track {n}" if len(sounds) > 1 else "the sound" for n, sound in enumerate(sounds, 1)
            }

            def tried(index: int, work: Callable, *arguments: object) -> bool:
                try:
                    work(*arguments)
                except _CannotCopy:
                    self.encode.add(index)
                except Exception as error:  # whatever it is, it costs no other track
                    if getattr(error, "errno", None) == errno.ENOSPC:
                        raise
                    self.left_out[index] = f"{names[index]} is left out: {reason(error)}"
                else:
                    return True
                return False

            def add_track(sound: av.AudioStream) -> None:
                tracks[sound.index] = self._track(sound)

            for sound in sounds:
                if sound.index not in self.left_out and not tried(sound.index, add_track, sound):
                    return False
            try:
                for packet in self._packets(file, [sound for sound in sounds if sound.index in tracks]):
                    if not tried(packet.stream.index, tracks[packet.stream.index].add, packet):
                        return False
            except _SeekFailed:
                self.seeks = False
                return False
            for index, track in tracks.items():
                if not tried(index, track.finish):
                    return False
        self.tracks = sum(track.written > 0 for track in tracks.values())
        for index, track in tracks.items():
            if track.note:
                self.notes.append(f"{names[index]} {track.note}")
            if track.lost:
                instead = f"{track.silent:.2f} s are silent" if track.silent >= 0.01 else "are left out"
                damage = f"{track.lost} of {track.packets} packets of {names[index]} do not decode"
                self.notes.append(f"{damage}, and {instead}.")
            elif track.silent >= 0.01:
                self.notes.append(f"{track.silent:.2f} s are missing in {names[index]} and are silent.")
        return True

    def _track(self, sound: av.AudioStream) -> _Copied | _Encoded:
        if sound.codec_context is None:
            raise _LeftOut("its codec is not known.")
        if sound.codec_context.codec.canonical_name in self.kind.copied and sound.index not in self.encode:
            return _Copied(self, sound)
        if not self.decode:
            raise _LeftOut("FFmpeg crashes or hangs while it decodes it.")
        return _Encoded(self, sound)

    def _packets(self, file: av.container.InputContainer, sounds: list[av.AudioStream]) -> Iterator[av.Packet]:
        """Packets of the range and a little before it.

        Where the clock cannot jump, these are those that reading from beginning to end gives: a seek counts only where
        it leads before the first of them in every track.
        """
        seeks = self.seeks and not self.jumps
        before: set[int] = set()  # streams of which something before the range was read
        reached: set[int] = set()  # streams in the range; times that go back after that are those of a joined file
        passed: set[int] = set()  # streams behind it
        try:
            if seeks:
                file.seek(round((self.begin - _SEEK) * av.time_base))
            packets = file.demux(sounds) if sounds else iter(())
            for packet in packets:
                if not packet.size:  # the end of a track
                    continue
                time = _time(packet)
                index = packet.stream.index
                if index not in reached and time is not None and time + _duration(packet) < self.begin - _PREROLL:
                    before.add(index)
                    continue
                if seeks and index not in before:
                    raise _SeekFailed
                reached.add(index)
                if time is None or self.end is None or time < self.end:
                    yield packet
                elif not self.jumps and time > self.end + _SEEK:
                    passed.add(index)
                    if len(passed) == len(sounds):
                        return
        except av.error.FFmpegError as error:
            self.notes.append(f"the sound ends early, where the file is damaged: {reason(error)}")
        if seeks and len(before) < len(sounds):
            raise _SeekFailed


class _Copied:
    """A track whose packets are kept as they are; each is decoded only to see whether it can be."""

    packets, lost, silent, note = 0, 0, 0.0, ""

    def __init__(self, job: _Job, sound: av.AudioStream) -> None:
        self.written, self._job = 0, job
        self._next: float | None = None
        try:
            self._stream = job.out.add_stream_from_template(sound)
        except (av.error.FFmpegError, ValueError) as error:
            raise _CannotCopy from error

    def add(self, packet: av.Packet) -> None:
        time, job = _time(packet), self._job
        inside = time is not None and time + _duration(packet) >= job.begin - 1e-6
        if job.decode:
            length = _duration(packet)
            if packet.is_corrupt or time is None or (self._next and time > self._next + max(_MISSING, 2 * length)):
                raise _CannotCopy
            self._next = time + length if length else None
            try:
                packet.decode()
            except av.error.FFmpegError as error:
                if inside:
                    raise _CannotCopy from error
        stamp = packet.dts if packet.pts is None else packet.pts  # of sound they are one and the same
        if stamp is None or not inside or packet.is_corrupt:
            return
        packet.pts = packet.dts = stamp - round(job.begin / packet.time_base)
        packet.stream = self._stream
        self.written += _mux(job.out, [packet], _CannotCopy)

    def finish(self) -> None:
        pass


class _Encoded:
    """A track decoded, and encoded at the times of its packets."""

    def __init__(self, job: _Job, sound: av.AudioStream) -> None:
        self.packets, self.written, self.lost, self.silent, self._job = 0, 0, 0, 0.0, job
        self._decoder = decoder = sound.codec_context
        decoder.thread_count = 1
        layout = decoder.layout
        _never_freed.append(layout)
        names = [channel.name for channel in layout.channels]
        self._layout, self._mix, self.note = channel_mix(names, job.kind.layouts)
        self._rate = decoder.sample_rate
        # What all frames are brought to. Decoders that take their layout from the file are given a plain one in place
        # of a custom one: of a plain one PyAV has nothing to free.
        self._input = layout.name
        if decoder.codec.canonical_name.startswith("pcm_") or is_custom(names):
            decoder.options = {"ch_layout": hex((1 << len(names)) - 1)}
            self._input = av.AudioLayout(hex((1 << len(names)) - 1)).name
        self._same: tuple | None = None
        self._convert: av.AudioResampler | None = None
        self._position: int | None = None  # of the next sample, from the start of the range
        self._moved = 0  # samples by which times are moved on since they began anew
        self._after_loss = False
        self._repeated = 0  # samples to come whose time is past
        self._end = None if job.end is None else round((job.end - job.begin) * self._rate)
        kind = job.kind
        rate = self._rate if self._rate in kind.rates else 48000
        self._stream = cast(av.AudioStream, job.out.add_stream(kind.encoder, rate=rate))
        self._stream.layout = self._layout
        self._stream.bit_rate = max(128_000, 64_000 * len(LAYOUTS[self._layout]))

    def add(self, packet: av.Packet[av.AudioStream]) -> None:
        self.packets += 1
        try:
            frames: list[av.AudioFrame] | None = [] if packet.is_corrupt else packet.decode()
        except av.error.FFmpegError:
            frames = None
        if frames is None or packet.is_corrupt:
            time = _time(packet)
            self.lost += time is None or time + _duration(packet) > self._job.begin
            self._after_loss = True
            return
        for frame in frames:
            self._add_frame(frame)

    def finish(self) -> None:
        try:
            for frame in self._decoder.decode(None):
                self._add_frame(frame)
        except av.error.FFmpegError:
            pass
        if self._convert is not None:
            self._append(self._convert.resample(None))
        if self._position is None and self.lost:
            raise _LeftOut("none of its packets decode.")
        if self._position is not None:
            self._encode(None)

    def _add_frame(self, frame: av.AudioFrame) -> None:
        same = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._convert is None or same != self._same:  # may change in mid-stream
            if self._convert is not None:
                self._append(self._convert.resample(None))
            self._same = same
            self._convert = av.AudioResampler(format="flt", layout=self._input, rate=self._rate)
        if frame.pts is not None and frame.time_base is not None:
            self._follow(float(frame.pts * frame.time_base) - self._job.begin)
        elif self._position is None:
            self._position = 0
        frame.pts = None
        self._append(self._convert.resample(frame))

    def _follow(self, time: float) -> None:
        """Keep in step: the next sample belongs to this time in seconds."""
        wanted = round(time * self._rate) + self._moved
        if self._position is None:
            self._position = wanted
        ahead = wanted - self._position
        if ahead < -_RESTART * self._rate or (self._job.jumps and ahead > JUMP * self._rate):
            self._moved -= ahead
        elif ahead > _LONGEST_GAP * self._rate:
            raise _LeftOut(f"its times jump by {ahead / self._rate:.0f} seconds.")
        elif abs(ahead) > (_EXACT if self._after_loss else _JITTER) * self._rate:
            self.silent += max(0, ahead) / self._rate
            while ahead > 0:
                count = min(ahead, self._rate)
                self._write(np.zeros((count, len(LAYOUTS[self._layout])), np.float32))
                ahead -= count
            self._repeated = -ahead
        self._after_loss = False

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            plane, channels = memoryview(frame.planes[0]), self._mix.shape[1]
            samples = np.frombuffer(plane, np.float32, frame.samples * channels).reshape(-1, channels)
            drop = min(self._repeated, len(samples))
            self._repeated -= drop
            # The encoder refuses what is no number.
            self._write(np.nan_to_num(samples[drop:], posinf=1, neginf=-1) @ self._mix.T)

    def _write(self, samples: np.ndarray) -> None:
        """Encode samples (n, C) at the position, as far as they are in the range."""
        first = self._position or 0
        self._position = first + len(samples)
        samples = samples[max(0, -first) :]
        first = max(first, 0)
        if self._end is not None:
            samples = samples[: max(0, self._end - first)]
        if len(samples):
            packed = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, first, Fraction(1, self._rate)
            self._encode(frame)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        self.written += _mux(self._job.out, self._stream.encode(frame), _LeftOut)


def reason(error: Exception) -> str:
    """What an error says, as the end of a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def _time(packet: av.Packet) -> float | None:
    time = packet.dts if packet.pts is None else packet.pts
    return None if time is None else float(time * packet.time_base)


def _duration(packet: av.Packet) -> float:
    return float((packet.duration or 0) * packet.time_base)


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], failure: type[Exception]) -> int:
    """Number of packets written. Raises ``failure`` where MP4 does not take them, OSError where the disk is full."""
    for packet in packets:
        try:
            container.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            raise failure("MP4 does not take its packets.") from error
    return len(packets)


def _main(arguments: str, seconds: str) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds))  # ends the process in the middle of C code too
    try:
        result = prepare(*json.loads(arguments))
    except Exception as error:
        result = {"tracks": 0, "notes": [f"the sound is left out: {reason(error)}"]}
    print(json.dumps(result), flush=True)
    os._exit(0)  # nothing is freed any more


if __name__ == "__main__":
    _main(*sys.argv[1:])
