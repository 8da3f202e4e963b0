"""Which pictures a file shows: the stream that players take, and its frames as the decoder puts them out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

import av
from av.format import Flags
from av.stream import Disposition

from icve.data.media.media_paths import media_path
from icve.runtime.storage.files import is_plain, open_file


class VideoError(ValueError):
    """A video that cannot be read as asked. ``path`` names it, ``reason`` says why in one sentence."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


# FFmpeg reads on to find out the rate of a stream, and in a transport stream from the end, how long it is.
_RATE_AND_LENGTH_KNOWN = {"fpsprobesize": "0", "skip_estimate_duration_from_pts": "1"}


def open_media(path: str | os.PathLike, indexed: bool = False) -> av.container.InputContainer:
    """Open a file whose titles and comments may be in any encoding; remote ones are read by ranges, tars' members too.

    Args:
        path: the file.
        indexed: its rate and length are known: less of it is read, and streams may then state none.

    Raises:
        av.error.FFmpegError: it is none that can be read; an OSError too.
        OSError: it cannot be opened; RemoteError, also later when it is read, where its server does not give it.
    """
    options = _RATE_AND_LENGTH_KNOWN if indexed else {}
    file = media_path(path) if is_plain(path) else open_file(path)
    return av.open(file, "r", metadata_errors="replace", options=options)


def clock_may_jump(container: av.container.InputContainer) -> bool:
    """Whether the times of the file's format may restart or jump and mean nothing by it, as in transport streams."""
    return bool(container.format.flags & Flags.ts_discont.value)  # type: ignore[operator]  # an int, which PyAV denies


def time_unit(stream: av.stream.Stream) -> Fraction:
    """Seconds per unit of a stream's times; FFmpeg's own where it has none."""
    return stream.time_base or Fraction(1, 90000)


def video_stream(container: av.container.InputContainer, path: str | os.PathLike) -> av.VideoStream:
    """The video stream that players show: the default one, the largest of several; cover pictures are none.

    Raises:
        VideoError: the file has no video stream.
    """
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        what = "no video stream" + (", only a cover picture" if container.streams.video else "")
        raise VideoError(path, f"it has {'no codec that is known' if streams else what}.")
    # The first of equals: max keeps it.
    return max(known, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width * stream.height))


def shown_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: str | os.PathLike,
    size: tuple[int, int] | None,
) -> Iterator[av.VideoFrame]:
    """Decode a stream from where the container stands: what is shown, in display order, corrupt frames too.

    What cannot be decoded before the first frame is passed over: a recording may begin, and a seek end, between two key
    frames, and what follows has nothing to be predicted from.

    Args:
        container: an open file; one thread decodes.
        stream: of this container.
        path: named in errors.
        size: (width, height) that every frame must have; None takes the first frame's.

    Raises:
        VideoError: the size of the picture changes.
        av.error.FFmpegError: a packet after the first frame does not decode.
    """
    stream.thread_count = 1
    shown = False
    for packet in container.demux(stream):
        if not packet.size and packet.buffer_ptr:  # Theora's "as before": no frame, and unlike the last, no end
            continue
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if shown:
                raise
            continue
        for frame in frames:
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise VideoError(
                    path,
                    f"it changes the size of its picture, from {size[0]}x{size[1]} to {frame.width}x{frame.height}: "
                    "convert it to one size first (ffmpeg -i FILE NEW.mp4 takes that of the first frame).",
                )
            shown = True
            yield frame
