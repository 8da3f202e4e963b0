"""Frames of the clips that a row names, for stages that look at a few of them or at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from icve.curation.stage import Row, Workspace
from icve.data.media.video import VideoError, probe, read_frames


@dataclass(frozen=True)
class Clip:
    """`frames` frames of a file from `start` on."""

    file: Path
    start: int
    frames: int

    def read(
        self, indices: Sequence[int] | np.ndarray | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Frames (F, H, W, 3) uint8 RGB: all, or those with the given numbers within the clip.

        Args:
            indices: numbers from 0.
            size: (height, width) that the picture is stretched to; None keeps the file's.

        Raises:
            VideoError: the file cannot be read or has too few frames.
        """
        wanted = np.arange(self.frames) if indices is None else np.asarray(indices)
        return read_frames(self.file, wanted + self.start, size=size, shape=size)


def clip_of(row: Row, work: Workspace, role: Literal["source", "target"] = "source") -> Clip:
    """The clip that `<role>_path`, `<role>_start` and `<role>_frames` name; without the last, all the rest of the file.

    Raises:
        VideoError: the file cannot be read or ends before the clip begins.
        ManifestError: the path leaves the root.
    """
    file, start = work.file(row, f"{role}_path"), row.get(f"{role}_start") or 0
    frames = row.get(f"{role}_frames") or probe(file).frames - start
    if frames < 1:
        raise VideoError(file, f"it ends before frame {start}, where its clip begins.")
    return Clip(file, start, frames)


def spread(length: int, count: int, turn: int = 0, turns: int = 1) -> np.ndarray:
    """Numbers of `count` frames spread evenly over `length` frames: the middles of as many equal parts.

    With several `turns`, each turn looks at other moments of the same parts. Short clips give repeated numbers once.

    Returns:
        (n,) int64, ascending, 1 <= n <= count.
    """
    moments = (np.arange(count) + (turn + 0.5) / turns) / count
    return np.unique((moments * length).astype(np.int64))
