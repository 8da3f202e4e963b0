"""Video files out, frame by frame, with the timestamps and the sound of a source: MP4, or what holds alpha."""

from __future__ import annotations

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np

from icve.data.media import sound
from icve.data.media.media_paths import media_path
from icve.data.media.png_frames import frame_pattern, refuse_other_files
from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.video_formats import VideoFormat, format_named, formats_with_alpha
from icve.data.media.video_stream import open_media
from icve.runtime.atomic import new_folder, whole_file


class VideoWriter:
    """Write a video frame by frame; the file, or the folder of frames, appears whole or not at all.

    A context manager: leaving it normally puts the file into place, leaving it by an exception leaves nothing behind.

    Args:
        path: file to write; its folder is created, an existing file is replaced. Of "png", the folder to write; one of
            frames is replaced, one that holds anything else is refused.
        rate: nominal frame rate; without ``times``, frame n is shown at n / rate.
        time_base: unit of the timestamps that :meth:`write` is given, in seconds.
        crf: quality of "mp4", 0 (best) to 51, and of "vp9", 0 to 63.
        preset: x264's; faster ones make larger files of the same quality.
        sample_aspect: width over height of a pixel as shown.
        sound: what is heard, waited for at the first frame (every track is copied; those that MP4 players do not know
            or that are damaged are encoded as AAC, see :mod:`icve.data.media.sound`). It never costs the picture. For
            "vp9", it is to be made ready as "webm". "png" holds none.
        format: a key of :data:`icve.data.media.video_formats.FORMATS`: "mp4" (H.264, yuv420p, plays everywhere),
            "prores4444" (MOV, 4:4:4 of 10 bits, alpha without loss), "vp9" (WebM, yuv420p, times to the millisecond) or
            "png" (a folder of frames without loss, without times). All but "png" are BT.709 of limited range and say
            so. All but "mp4" take alpha.

    Attributes:
        notes: sentences on what of the sound, or of the shape of the pixels, could not be kept.
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
        format: str = "mp4",
    ) -> None:
        self._format = format_named(format)
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
            if self._format.is_folder:
                refuse_other_files(self.path)
                name = frame_pattern(stack.enter_context(new_folder(self.path, replace=True)))
            else:
                name = media_path(stack.enter_context(whole_file(self.path, durable=False)))
            container = av.open(name, "w", format=self._format.container, options=dict(self._format.container_options))
            self._container = stack.enter_context(container)
            self._open_files = stack.pop_all()
        return self

    def write(self, frames: np.ndarray, times: np.ndarray | None = None) -> None:
        """Append frames (F, H, W, 3) uint8 RGB, shown at ``times`` (F,) in units of ``time_base``, ascending.

        Frames (F, H, W, 4) have alpha, 255 for opaque; their colours are not multiplied by it. The first call sets the
        size and whether there is alpha. Odd sizes grow by one replicated row or column in yuv420p, which needs even
        ones.

        Raises:
            ValueError: frames of another shape or type, or with alpha for a format that holds none.
            OSError: the file cannot be written.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] not in (3, 4) or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(
                f"A video is written from uint8 frames (F, H, W, 3) or (F, H, W, 4), not {frames.dtype} {frames.shape}."
            )
        pixels = _pixel_format(self._format, alpha=frames.shape[-1] == 4)
        height, width = frames.shape[1:3]
        if "420" in pixels and (height % 2 or width % 2):
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            height, width = frames.shape[1:3]
        if self._stream is None:
            self._stream = self._open_stream(height, width, pixels)
        elif self._stream.pix_fmt != pixels:
            raise ValueError("Either all frames of a video have alpha, or none has.")
        if times is None:
            times = np.arange(self.frames, self.frames + len(frames))
        for frame, time in zip(frames, times, strict=True):
            picture = _picture(frame, pixels)
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

    def _open_stream(self, height: int, width: int, pixels: str) -> av.VideoStream:
        kind = self._format
        stream = cast(av.VideoStream, self._container.add_stream(kind.codec, rate=self.rate))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.options = {
            name: value.format(crf=self.crf, preset=self.preset) for name, value in kind.encoder_options.items()
        }
        context = stream.codec_context
        context.time_base = stream.time_base = self.time_base
        context.sample_aspect_ratio = self.sample_aspect
        if self.sample_aspect != 1 and not kind.pixel_aspect:
            self.notes.append(f"{kind.title} shows the pixels square, and not {self.sample_aspect} as wide as high.")
        if "yuv" in pixels:
            # Tagged, because players guess the matrix of untagged files from their height.
            context.colorspace = context.color_primaries = context.color_trc = 1
            context.color_range = 1
        if self._prepared is not None and kind.sound is None:
            if self._prepared.is_there:
                self.notes.append(f"{kind.title} files hold no sound.")
        elif self._prepared is not None:
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


def _pixel_format(kind: VideoFormat, alpha: bool) -> str:
    if not alpha:
        return kind.pixels
    if kind.alpha_pixels is None:
        raise ValueError(f"{kind.title} holds no alpha: choose one of the formats {', '.join(formats_with_alpha())}.")
    return kind.alpha_pixels


def _picture(frame: np.ndarray, pixels: str) -> av.VideoFrame:
    """A frame (H, W, 3 or 4) uint8 in the encoder's pixel format."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba" if frame.shape[2] == 4 else "rgb24")
    if picture.format.name == pixels:
        return picture
    # More threads cost milliseconds to start, for every frame.
    picture = picture.reformat(format=pixels, dst_colorspace=1, dst_color_range=1, threads=1)
    if frame.shape[2] == 4:  # FFmpeg's conversion is off by up to one level of 255, opaque not quite 1023 of 10 bits
        plane, bits = picture.planes[3], picture.format.components[3].bits
        kind = np.uint8 if bits == 8 else np.uint16
        stored = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        most = 2**bits - 1
        stored[:, : plane.width] = (frame[..., 3].astype(np.uint32) * most + 127) // 255
        plane.update(stored.tobytes())
    return picture


def write_video(
    path: str | os.PathLike, frames: np.ndarray, fps: float | Fraction, crf: int = 18, format: str = "mp4"
) -> None:
    """Write frames (F, H, W, 3 or 4) uint8 at a constant rate with :class:`VideoWriter`, whole or not at all.

    ``fps`` is taken as the nearest fraction with a denominator up to 1001 (23.976 → 24000/1001).

    Raises:
        ValueError: frames of another shape or type, or that the format does not hold, or a rate that is not positive.
    """
    with VideoWriter(path, fps, crf=crf, format=format) as writer:
        writer.write(frames)
