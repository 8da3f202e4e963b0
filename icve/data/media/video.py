"""Pixels from and to video files: one decoder and one error policy for training, editing and curation.

PyAV decodes. A part of a damaged file is never salvaged: whatever cannot be delivered exactly as asked raises
:class:`VideoError`. A file is opened per call and never kept, so that processes may be forked at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import av
import cv2
import numpy as np

from icve.data.media.picture import upright
from icve.data.media.still_picture import read_picture
from icve.data.media.video_index import STILL, PacketIndex, VideoError, VideoInfo, index_packets, probe, timestamps
from icve.data.media.video_stream import open_media, shown_frames, video_stream
from icve.data.media.video_writer import VideoWriter, write_video

__all__ = [
    "VideoError",
    "VideoInfo",
    "VideoWriter",
    "cover_size",
    "iterate_frames",
    "probe",
    "read_frames",
    "resize_crop",
    "sample_indices",
    "timestamps",
    "write_video",
]

# Videos are decoded side by side in processes, where more threads only compete. Here and not in the workers: a process
# forked after OpenCV's thread pool was used hangs when it changes the number of threads.
cv2.setNumThreads(1)

_CHUNK = 16  # frames held at full resolution while resizing, at most:
_CHUNK_PIXELS = 2**22
_ROUNDED = 1.5e-3  # seconds by which steps of a constant rate may be shorter than they are, where times are rounded


def sample_indices(seconds: np.ndarray, fps: float, start: int = 0, count: int | None = None) -> np.ndarray:
    """Frames of a (possibly variable-rate) timeline that stand nearest to a constant rate, each at most once.

    Those are the frames nearest in time to ``seconds[start] + k / fps`` (the earlier one of a tie) for k = 0, 1, ...
    Pauses are passed over. A timeline slower than ``fps`` throughout gives all its frames.

    Args:
        seconds: presentation times, (F,), ascending.
        fps: rate to sample at, > 0.
        start: frame the samples begin at.
        count: number of samples; None takes all up to the last frame.

    Returns:
        (count,) int64 frame numbers, ascending; fewer where the timeline ends before (callers decide whether that is an
        error).
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}.")
    timeline = np.asarray(seconds, dtype=np.float64)[start:]
    if timeline.size == 0:
        return np.empty(0, dtype=np.int64)
    count = timeline.size if count is None else count
    # Timestamps are rounded to the container's time base (1 ms in Matroska): allow that much at the end.
    length = timeline[-1] - timeline[0]
    if timeline.size - 1 <= fps * length and np.diff(timeline).min(initial=np.inf) > 1 / fps - _ROUNDED:
        return np.arange(start, start + min(count, timeline.size))
    available = int(np.floor((length + 1e-3) * fps)) + 1
    tried, chosen = 0, np.empty(0, dtype=np.int64)
    while tried < available and len(chosen) < count:  # once, unless frames were nearest to several samples
        tried = min(available, max(count, 2 * tried))
        chosen = np.unique(_nearest(timeline, timeline[0] + np.arange(tried) / fps))
    return (chosen[:count] + start).astype(np.int64)


def _nearest(timeline: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    after = np.clip(np.searchsorted(timeline, wanted), 1, max(timeline.size - 1, 1))
    before = after - 1
    after = np.minimum(after, timeline.size - 1)
    return np.where(wanted - timeline[before] <= timeline[after] - wanted + 1e-9, before, after)


def read_frames(
    path: str | os.PathLike,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    start: int = 0,
    count: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    shape: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode frames of a video, upright.

    Args:
        path: video file.
        indices: frame numbers of the file in any order, repeats allowed; excludes ``start``, ``count`` and ``fps``.
        start: first frame.
        count: number of frames; None reads to the end.
        fps: resample to this rate by timestamp (see :func:`sample_indices`); None keeps the file's own frames.
        size: (height, width) to return, see :func:`resize_crop`; None keeps the file's size.
        shape: (height, width) the picture is stretched to before the crop of ``size``, see :func:`resize_crop`.

    Returns:
        (F, H, W, 3) uint8 RGB, contiguous.

    Raises:
        VideoError: the file is missing, empty, not a video, without video, truncated, corrupt, or has too few frames.
        ValueError: contradictory arguments.
    """
    if indices is not None and (start != 0 or count is not None or fps is not None):
        raise ValueError("Give read_frames either indices, or start, count and fps.")
    if start < 0 or (count is not None and count < 1):
        raise ValueError(f"start must be at least 0 and count at least 1, not {start} and {count}.")
    index = index_packets(path)
    frames = index.info.frames
    if indices is None:
        if start >= frames:
            raise VideoError(path, f"it has {frames} frames, so it cannot be read from frame {start}.")
        if fps is None:
            indices = np.arange(start, frames if count is None else min(frames, start + count))
        else:
            indices = sample_indices(index.seconds, fps, start, count)
        if count is not None and len(indices) < count:
            rate = "" if fps is None else f" at {fps:g} fps"
            raise VideoError(path, f"it gives {len(indices)} frames{rate} from frame {start} on, fewer than {count}.")
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1 or wanted.size == 0:
        raise ValueError("indices must be a non-empty list of frame numbers.")
    if wanted.min() < 0 or wanted.max() >= frames:
        outside = int(wanted.max() if wanted.max() >= frames else wanted.min())
        raise VideoError(path, f"it has {frames} frames, so there is no frame {outside}.")

    unique, inverse = np.unique(wanted, return_inverse=True)
    chunks = _read(path, index, unique)
    result = np.concatenate([chunk if size is None else resize_crop(chunk, size, shape) for chunk in chunks])
    return result if np.array_equal(unique, wanted) else result[inverse]


def iterate_frames(
    path: str | os.PathLike, start: int = 0, count: int | None = None, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Decode consecutive frames in one pass, a few at a time, so that a file of any length fits into memory.

    Args:
        path: video file.
        start: first frame.
        count: number of frames; None reads to the end.
        size: (height, width) that the whole picture is stretched to; None keeps the file's size.

    Yields:
        (n, H, W, 3) uint8 RGB, n at most 16.

    Raises:
        VideoError: as :func:`read_frames`.
    """
    index = index_packets(path)
    end = index.info.frames if count is None else start + count
    if not 0 <= start < end <= index.info.frames:
        raise VideoError(path, f"it has {index.info.frames} frames, not the frames {start} to {end - 1} asked for.")
    for chunk in _read(path, index, np.arange(start, end)):
        yield chunk if size is None else resize_crop(chunk, size, size)


def cover_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Smallest (height, width) with the proportions of ``shape`` that covers ``size``, both (height, width)."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    return max(size[0], round(shape[0] * scale)), max(size[1], round(shape[1] * scale))


def resize_crop(frames: np.ndarray, size: tuple[int, int], shape: tuple[int, int] | None = None) -> np.ndarray:
    """Scale frames to cover ``size`` and cut the centre out.

    Shrinking averages areas (no aliasing), enlarging is bicubic.

    Args:
        frames: (F, H, W, C) uint8.
        size: (height, width) wanted.
        shape: (height, width) to stretch the picture to first (in one resampling); None keeps its proportions. An
            edited copy that was rendered at another size stays aligned with its source when given the source's.

    Returns:
        (F, *size, C) uint8, contiguous.
    """
    height, width = size
    scaled = cover_size(shape or frames.shape[1:3], size)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    if scaled == frames.shape[1:3]:
        return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    shrinks = scaled[0] * scaled[1] < frames.shape[1] * frames.shape[2]
    result = np.empty((len(frames), height, width, frames.shape[3]), dtype=np.uint8)
    for frame, out in zip(frames, result, strict=True):
        resized = cv2.resize(frame, scaled[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        out[:] = resized.reshape(*scaled, -1)[top : top + height, left : left + width]
    return result


def _read(path: str | os.PathLike, index: PacketIndex, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (n, H, W, 3) chunks of ascending frame numbers."""
    if index.info.codec == STILL:
        yield read_picture(path)[None]
        return
    # Decoding begins at the last key frame shown at or before the first wanted frame; what an open group of pictures
    # shows before its key frame is never wanted then. Where the container's seek goes too far, or the key frame turns
    # out to be none that decoding can begin at, the one before it is tried, and then the start of the file.
    keys = [] if index.stamps is None else index.keys[(index.keys <= wanted[0]) & (index.keys > 0)][:-3:-1].tolist()
    done = 0
    for key in [*keys, 0]:
        for chunk in _read_from(path, index, wanted[done:], key):
            done += len(chunk)
            yield chunk
        if done == len(wanted):
            return


def _read_from(path: str | os.PathLike, index: PacketIndex, wanted: np.ndarray, key: int) -> Iterator[np.ndarray]:
    """Chunks of the wanted frames, decoded from a key frame on; those from a later one may end too early."""
    numbers: dict[int | None, int] | None = None
    if index.stamps is not None:  # a few more than wanted, to see that a frame was left out
        numbers = {int(stamp): key + n for n, stamp in enumerate(index.stamps[key : int(wanted[-1]) + 65])}
    most = max(1, min(_CHUNK, _CHUNK_PIXELS // (index.info.width * index.info.height)))
    chunk: list[np.ndarray] = []
    done, reached, damaged = 0, key == 0, False
    try:
        with open_media(path, indexed=key > 0) as container:
            stream = video_stream(container, path)
            if key and index.stamps is not None:  # without stamps, reading begins at the file's start
                place = -1 if index.places is None else int(index.places[np.searchsorted(index.keys, key)])
                if place >= 0:
                    container.seek(place, unsupported_byte_offset=True)
                else:
                    container.seek(int(index.stamps[key]), stream=stream)
            for count, frame in enumerate(shown_frames(container, stream, path, index.stored)):
                number = count if numbers is None else numbers.get(frame.pts)
                reached = reached or (number == key and frame.key_frame)
                # What follows a corrupt frame is predicted from it, up to the next key frame.
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                if number is None or (number < wanted[done] and reached):
                    continue
                if number > wanted[done] or not reached or damaged:
                    break
                chunk.append(upright(frame, index.info.rotation, index.info.mirrored))
                done += 1
                if len(chunk) == most or done == len(wanted):
                    yield np.stack(chunk)
                    chunk = []
                if done == len(wanted):
                    return
            else:
                damaged = False
    except av.error.FFmpegError as error:
        if not key:
            raise VideoError(path, f"it is damaged: frame {int(wanted[done])} does not decode.") from error
    if not key:
        what = "is corrupt" if damaged else f"of {index.info.frames} does not decode"
        raise VideoError(path, f"it is damaged: frame {int(wanted[done])} {what}.")
