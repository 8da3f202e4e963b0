"""Video files out: H.264 MP4 that plays everywhere, frame by frame, with the timestamps and the sound of a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from icve.data.media_paths import media_path

# What MP4 holds and browsers play; other sound is encoded anew.
_COPIED_AUDIO = frozenset({"aac", "mp3", "opus", "flac", "ac3", "eac3", "alac"})
_AUDIO_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)


class VideoWriter:
    """Write an MP4 (H.264, yuv420p, BT.709, index in front) frame by frame; the file appears whole or not at all.

    A context manager: leaving it normally puts the file into place, leaving it by an exception leaves nothing behind.

    Args:
        path: file to write; its folder is created, an existing file is replaced.
        rate: nominal frame rate; without ``times``, frame n is shown at n / rate.
        time_base: unit of the timestamps that :meth:`write` is given, in seconds.
        crf: x264 quality, 0 (best) to 51.
        preset: x264's; faster ones make larger files of the same quality.
        sample_aspect: width over height of a pixel as shown.
        sound: file whose sound is copied (every track; tracks MP4 players do not know are encoded as AAC).
        sound_range: seconds [from, to) of that file's timeline that are taken, ``from`` being time 0 of this one; None
            for ``to`` is its end.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        rate: float | Fraction,
        time_base: Fraction | None = None,
        crf: int = 18,
        preset: str = "medium",
        sample_aspect: Fraction = Fraction(1),
        sound: str | os.PathLike | None = None,
        sound_range: tuple[float, float | None] = (0.0, None),
    ) -> None:
        if not rate > 0:
            raise ValueError(f"fps must be positive, not {rate}.")
        # A time-lapse has less than a frame in 2000 seconds, which no fraction of a small denominator says.
        self.rate = (
            Fraction(rate).limit_denominator(1001) if rate >= 1 else 1 / Fraction(1 / rate).limit_denominator(1001)
        )
        self.path, self.time_base = Path(path), time_base or 1 / self.rate
        self.crf, self.preset, self.frames = crf, preset, 0
        self.sample_aspect = Fraction(sample_aspect).limit_denominator(4096)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container = self._stream = None
        self._sound = None if sound is None else _Sound(sound, *sound_range)

    def __enter__(self) -> VideoWriter:
        self._container = av.open(media_path(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        return self

    def write(self, frames: np.ndarray, times: np.ndarray | None = None) -> None:
        """Append frames (F, H, W, 3) uint8 RGB, shown at ``times`` (F,) in units of ``time_base``, ascending.

        The first call sets the size. Odd sizes grow by one replicated row or column, as yuv420p needs even ones.

        Raises:
            ValueError: frames of another shape or type.
            OSError: the file cannot be written.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(f"A video is written from uint8 frames (F, H, W, 3), not {frames.dtype} {frames.shape}.")
        height, width = frames.shape[1:3]
        if height % 2 or width % 2:
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._open_stream(*frames.shape[1:3])
        if times is None:
            times = np.arange(self.frames, self.frames + len(frames))
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            # More threads cost milliseconds to start, for every frame.
            picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1, threads=1)
            picture.pts, picture.time_base = int(time), self.time_base
            self._mux(self._stream.encode(picture))
        self.frames += len(frames)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                if kind is None and self._stream is not None:
                    self._mux(self._stream.encode())
                    if self._sound is not None:
                        self._sound.write(None)
            finally:
                if self._sound is not None:
                    self._sound.close()
                self._container.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        except BaseException:
            if kind is None:  # the first error is the one to tell
                raise
        finally:
            self._temporary.unlink(missing_ok=True)

    def _open_stream(self, height: int, width: int) -> None:
        stream = self._container.add_stream("libx264", rate=self.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread, because callers parallelise over files. Without look-ahead rate control, because with it the same
        # frames did not always give the same bytes.
        stream.options = {
            "crf": str(self.crf),
            "preset": self.preset,
            "threads": "1",
            "x264-params": "mbtree=0:weightp=0",
        }
        context = stream.codec_context
        context.time_base = stream.time_base = self.time_base
        context.sample_aspect_ratio = self.sample_aspect
        # Tagged, because players guess the matrix of untagged files from their height.
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        self._stream = stream
        if self._sound is not None:
            self._sound.open(self._container)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._sound is not None and packet.pts is not None:  # sound beside the picture it belongs to
                self._sound.write(float(packet.pts * packet.time_base))
            self._container.mux(packet)


class _Sound:
    """The sound of a file, muxed into another container up to a given time at each call."""

    def __init__(self, path: str | os.PathLike, start: float, end: float | None) -> None:
        self._start, self._end = start, end
        self._file = av.open(media_path(path))
        self._streams = [stream for stream in self._file.streams.audio if stream.codec_context is not None]
        self._target = None

    def open(self, container: av.container.OutputContainer) -> None:
        self._target = container
        self._tracks = {stream.index: _Track(container, stream) for stream in self._streams}
        self._packets = self._read()
        self._waiting = next(self._packets, None)

    def write(self, until: float | None) -> None:
        while self._waiting is not None and (until is None or self._waiting[0] <= until):
            self._target.mux(self._waiting[1])
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Iterator[tuple[float, av.Packet]]:
        """(time, packet) in the order of the file, cut to the range and moved to its start."""
        if not self._streams:
            return
        for packet in self._file.demux(self._streams):
            encoder = self._tracks[packet.stream.index]
            if packet.dts is None:  # the end of a track
                if encoder.resampler is not None:
                    yield from encoder.flush(self._start)
                continue
            time = float((packet.dts if packet.pts is None else packet.pts) * packet.time_base)
            length = float((packet.duration or 0) * packet.time_base)
            if time + length < self._start - 1e-6 or (self._end is not None and time >= self._end):
                continue
            yield from encoder.take(packet, self._start)


class _Track:
    """One sound track: its packets copied, or decoded and encoded as AAC."""

    def __init__(self, container: av.container.OutputContainer, stream: av.AudioStream) -> None:
        self.resampler = None
        if stream.codec_context.name in _COPIED_AUDIO:
            self.stream = container.add_stream_from_template(stream)
            return
        rate = stream.codec_context.sample_rate
        self.stream = container.add_stream("aac", rate=rate if rate in _AUDIO_RATES else 48000)
        self.stream.layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        self.resampler = av.AudioResampler(format="fltp", layout=self.stream.layout, rate=self.stream.rate)

    def take(self, packet: av.Packet, start: float) -> Iterator[tuple[float, av.Packet]]:
        if self.resampler is not None:
            for frame in packet.decode():
                yield from self._encode(self.resampler.resample(frame), start)
            return
        shift = round(start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = self.stream
        yield float(packet.pts * packet.time_base), packet

    def flush(self, start: float) -> Iterator[tuple[float, av.Packet]]:
        yield from self._encode([*self.resampler.resample(None), None], start)

    def _encode(self, frames: list[av.AudioFrame | None], start: float) -> Iterator[tuple[float, av.Packet]]:
        for frame in frames:
            if frame is not None:
                frame.pts -= round(start / frame.time_base)
            for packet in self.stream.encode(frame):
                yield float(packet.pts * packet.time_base), packet


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float | Fraction, crf: int = 18) -> None:
    """Write frames (F, H, W, 3) uint8 RGB at a constant rate with :class:`VideoWriter`, whole or not at all.

    ``fps`` is taken as the nearest fraction with a denominator up to 1001 (23.976 → 24000/1001).

    Raises:
        ValueError: frames of another shape or type, or a rate that is not positive.
    """
    with VideoWriter(path, fps, crf=crf) as writer:
        writer.write(frames)
