"""A few moments of a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icve.curation.stage import Row, Workspace
from icve.data.media.video import VideoError, read_frames, timestamps


def clip_moments(file: Path, start: int | None, frames: int | None, count: int) -> np.ndarray:
    """Frames of a file that lie nearest to the middles of ``count`` equal parts of a clip's time.

    By timestamp, so that moments of two clips belong together also where rates differ or vary.

    Args:
        file: video.
        start, frames: the clip, in frames of the file; None for its beginning, and for all the rest.
        count: number of moments.

    Returns:
        (count,) int64 frame numbers of the file, ascending; repeated where the clip has fewer frames.

    Raises:
        VideoError: the file cannot be read, or the clip is not in it.
    """
    seconds = timestamps(file)
    first = int(start or 0)
    last = len(seconds) if frames is None else first + int(frames)
    if not 0 <= first < last <= len(seconds):
        raise VideoError(file, f"it has {len(seconds)} frames, not the frames {first} to {last - 1} of the clip.")
    clip = seconds[first:last]
    wanted = clip[0] + (np.arange(count) + 0.5) / count * (clip[-1] - clip[0])
    return first + np.abs(clip[None] - wanted[:, None]).argmin(1)


def sample_clips(row: Row, work: Workspace, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """``count`` frames of a row's source and target clips at the same moments of their times.

    Reads ``source_path``, ``target_path`` and, where there, their ``_start`` and ``_frames``.

    Args:
        row, work: whose clips.
        count: number of moments.
        size: (height, width) of the frames, also of a copy that was edited at another size.

    Returns:
        source and target, (count, H, W, 3) uint8 RGB each.

    Raises:
        VideoError: a file cannot be read.
    """

    def frames(clip: str) -> np.ndarray:
        file = work.file(row, f"{clip}_path")
        moments = clip_moments(file, row.get(f"{clip}_start"), row.get(f"{clip}_frames"), count)
        return read_frames(file, moments, size=size, shape=size)

    return frames("source"), frames("target")
