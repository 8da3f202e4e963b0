"""Video files out: H.264 MP4 that plays everywhere, frame by frame, with the timestamps and the sound of a source."""

from __future__ import annotations

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from icve.data.media import sound
from icve.data.media.media_paths import media_path
from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.video_stream import open_media
from icve.runtime.atomic import whole_file


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
        sound: what is heard, waited for at the first frame (every track is copied; those that MP4 players do not know
            or that are damaged are encoded as AAC, see :mod:`icve.data.media.sound`). It never costs the picture.

    Attributes:
        notes: sentences on what of the sound could not be kept.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        rate: float | Fraction,
        time_base: Fraction | None = None,
        crf: int = 18,
        preset: str = "medium",
        sample_aspect: Fraction = Fraction(1),
        sound: PreparedSound | None = None,
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
        self._open_files = contextlib.ExitStack()
        self._container: av.container.OutputContainer
        self._stream: av.VideoStream | None = None
        self.notes: list[str] = []
        self._prepared = sound
        self._sound: _Sound | None = None

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(whole_file(self.path, durable=False))
            options = {"movflags": "+faststart"}
            container = av.open(media_path(temporary), "w", format="mp4", options=options)
            self._container = stack.enter_context(container)
            self._open_files = stack.pop_all()
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
            self._stream = self._open_stream(*frames.shape[1:3])
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
            with self._open_files:
                if kind is not None:
                    raise RuntimeError("not finished")
                if self._stream is not None:
                    self._mux(self._stream.encode())
                    if self._sound is not None:
                        self._sound.write(None)
        except BaseException:
            if kind is None:  # the first error is the one to report
                raise

    def _open_stream(self, height: int, width: int) -> av.VideoStream:
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
        if self._prepared is not None:
            self._sound = _Sound(self._prepared, self._container, self.notes)
            self._open_files.callback(self._sound.close)
        return stream

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._sound is not None and packet.pts is not None:  # sound beside the picture it belongs to
                self._sound.write(float(packet.pts * packet.time_base))
            self._container.mux(packet)


class _Sound:
    """A sound that is ready, muxed up to a given time at each call.

    Whatever happens to it, the picture goes on: it is said in ``notes``. Only a full disk is an error.
    """

    def __init__(self, prepared: PreparedSound, container: av.container.OutputContainer, notes: list[str]) -> None:
        """Wait until the sound is ready, and add its tracks."""
        self._container, self._notes = container, notes
        self._file: av.container.InputContainer | None = None
        self._waiting: av.Packet | None = None
        tracks, problems = prepared.result()
        notes += problems
        if not tracks:
            return
        try:
            self._file = open_media(prepared.path)
            streams = [stream for stream in self._file.streams.audio if stream.frames]
            self._tracks = {stream.index: container.add_stream_from_template(stream) for stream in streams}
            self._packets = self._file.demux(streams)
            self._waiting = next(self._packets, None)
        except Exception as error:
            notes.append(f"The sound is left out: {sound.reason(error)}")

    def write(self, until: float | None) -> None:
        """Mux the sound up to a time in seconds, None for all of it."""
        try:
            while self._waiting is not None:
                packet = self._waiting
                if packet.dts is not None:
                    if until is not None and packet.dts * packet.time_base > until:
                        return
                    packet.stream = self._tracks[packet.stream.index]
                    self._container.mux(packet)
                self._waiting = next(self._packets, None)
        except Exception as error:
            self._waiting = None
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise  # the picture has no room either
            self._notes.append(f"The sound ends early: {sound.reason(error)}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float | Fraction, crf: int = 18) -> None:
    """Write frames (F, H, W, 3) uint8 RGB at a constant rate with :class:`VideoWriter`, whole or not at all.

    ``fps`` is taken as the nearest fraction with a denominator up to 1001 (23.976 → 24000/1001).

    Raises:
        ValueError: frames of another shape or type, or a rate that is not positive.
    """
    with VideoWriter(path, fps, crf=crf) as writer:
        writer.write(frames)
