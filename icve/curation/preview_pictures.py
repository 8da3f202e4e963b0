"""Pictures of a row: a few frames of each of its clips side by side, with the edit's mask outlined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from icve.curation.probe import stated_pixels
from icve.curation.stage import Rejected, Row, Workspace
from icve.curation.work import FAILURES
from icve.data.manifest import ManifestError
from icve.data.masks import load_mask
from icve.data.media.video import VideoError, probe, read_frames
from icve.web.sprite_sheet import sprite_sheet

FRAMES = 4  # of a clip
SIDE = 150  # pixels of a frame's longer side
OUTLINE = (255, 45, 145)  # RGB, rare in videos

_LARGEST = 100_000_000  # pixels of a frame; a file of some bytes may state more
# What the run could not get through is not tried again: a file may hang a decoder, or fill the memory.
_NOT_OPENED = frozenset({"unreadable video", "unreadable file", "leaves the input folder", *FAILURES})


@dataclass(frozen=True)
class Strip:
    """Frames of one clip: `picture` is a data URL, or None with the reason in `caption`."""

    caption: str
    picture: str | None = None
    width: int = 0
    height: int = 0


class Pictures:
    """Draws the clips of a run's rows; a clip that comes again, as rows pass many stages, is drawn once."""

    def __init__(self, work: Workspace) -> None:
        self.work = work
        self._drawn: dict[tuple, Strip] = {}

    def strips(self, row: Row, rejected: Rejected | None = None) -> list[Strip]:
        """The clips of a row: source and target if it has them, else its scene of the raw video, else that video.

        A clip that cannot be shown has its reason instead; nothing is raised.
        """
        if row.get("source_path"):
            wanted = [name for name in ("source", "target") if row.get(f"{name}_path")]
        else:
            wanted = ["video"] if row.get("video") else []
        if rejected is not None and rejected.reason in _NOT_OPENED:
            return [Strip(f"{name}: not opened, since the run could not get through it") for name in wanted]
        return [self._strip(name, row) for name in wanted]

    def _strip(self, name: str, row: Row) -> Strip:
        try:
            clip = self._clip(name, row)
            if clip not in self._drawn:
                self._drawn[clip] = _picture(*clip)
            return self._drawn[clip]
        except (VideoError, ManifestError, OSError, ValueError, TypeError, cv2.error) as error:
            reason = error.reason if isinstance(error, VideoError) else str(error) or type(error).__name__
            return Strip(f"{name}: {reason}")

    def _clip(self, name: str, row: Row) -> tuple[str, Path, int, int | None, Path | None]:
        """Name, file, frames [start, end) and mask."""
        if name == "video":
            return name, self.work.video(row), row.get("scene_start") or 0, row.get("scene_end"), None
        start, count = row.get(f"{name}_start") or 0, row.get(f"{name}_frames")
        mask = self.work.file(row, "mask_path") if row.get("mask_path") else None
        return name, self.work.file(row, f"{name}_path"), start, None if count is None else start + count, mask


def _picture(name: str, path: Path, start: int, end: int | None, mask: Path | None) -> Strip:
    if (pixels := stated_pixels(path)) > _LARGEST:
        raise VideoError(path, f"its frames of {pixels} pixels are too large to show.")
    info = probe(path)
    end = info.frames if end is None else min(end, info.frames)
    if not 0 <= start < end:
        raise VideoError(path, f"it has {info.frames} frames, so there is no clip from frame {start}.")
    indices = np.linspace(start, end - 1, min(FRAMES, end - start)).round().astype(int)
    height, width = info.displayed
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    frames = read_frames(path, indices, size=size, shape=size)
    caption = f"{name}: {path.name}, frames {', '.join(map(str, indices))}"
    if mask is not None:
        try:
            frames = _outlined(frames, load_mask(mask), indices - start)
        except (ValueError, OSError, MemoryError) as error:
            caption += f" ({error})"
    return Strip(caption, sprite_sheet([frame[None] for frame in frames], 75), len(frames) * size[1], size[0])


def _outlined(frames: np.ndarray, mask: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Frames (F, H, W, 3) with the outline of the frames of a mask that have these numbers."""
    frames, size = frames.copy(), frames.shape[2:0:-1]
    for frame, number in zip(frames, numbers, strict=True):
        area = cv2.resize(mask[min(number, len(mask) - 1)].astype(np.float32), size, interpolation=cv2.INTER_AREA)
        edge = cv2.morphologyEx((area > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        frame[edge > 0] = OUTLINE
    return frames
