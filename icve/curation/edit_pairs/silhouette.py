"""BlackSilhouette: inpainting that failed leaves the mask's shape in black (ICVE, paired data)."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.edit_pairs.frames import clip_of
from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.masks import load_mask
from icve.data.media.video import VideoError

_SPECKLES = np.ones((3, 3), np.uint8)


def black_share(real: np.ndarray, drawn: np.ndarray, mask: np.ndarray, luma: int, margin: int) -> float:
    """Largest connected share of a masked region that is black in the drawn frame and was not in the real one.

    Args:
        real, drawn: (H, W, 3) uint8.
        mask: (H, W) bool.
        luma: brightest that counts as black, 0..255.
        margin: how much brighter than that the real pixel must be, so that what was dark may stay so.

    Returns:
        0..1; 0 for an empty mask.
    """
    area = int(mask.sum())
    if area == 0:
        return 0.0
    before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (real, drawn))
    black = ((after <= luma) & (before > luma + margin) & mask).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(black, cv2.MORPH_OPEN, _SPECKLES))
    return float(stats[1:, cv2.CC_STAT_AREA].max(initial=0)) / area


class BlackSilhouette(Stage):
    """Rejects pairs in which the drawn clip shows a large black patch inside the mask that the real one does not.

    Reads `source_path`, `target_path`, `mask_path` and `generated` ("source" where that is the drawn side, as in
    additions; else the target is). Rows without a mask were not inpainted and pass.

    Args:
        luma: brightest that counts as black, 0..255.
        margin: how much brighter the real pixel must be: a black cat is no failure.
        max_share: largest patch allowed, as a share of the mask. A failure leaves the thing's shape inside its dilated
            mask; dark clothes or hats that good edits add stay below a fifth.
        max_frames: share of the frames that may have a larger one.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, luma: int = 20, margin: int = 16, max_share: float = 0.25, max_frames: float = 0.1) -> None:
        if not 0 <= luma <= 255 or margin < 0 or not (0 <= max_share <= 1 and 0 <= max_frames <= 1):
            raise ValueError("BlackSilhouette needs luma in 0..255, margin of at least 0, and shares in 0..1.")
        self.luma, self.margin, self.max_share, self.max_frames = luma, margin, max_share, max_frames

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._check(row, work) for row in rows]

    def _check(self, row: Row, work: Workspace) -> Outcome:
        if not row.get("mask_path"):
            return row
        mask = load_mask(work.file(row, "mask_path"))
        sides = clip_of(row, work, "source"), clip_of(row, work, "target")
        drawn, real = sides if row.get("generated") == "source" else reversed(sides)
        numbers = range(min(drawn.frames, real.frames, len(mask)))
        before, after = real.read(numbers), drawn.read(numbers)
        if not before.shape[1:3] == after.shape[1:3] == mask.shape[1:]:
            sizes = ["x".join(map(str, array.shape[1:3])) for array in (after, mask)]
            raise VideoError(drawn.file, f"its frames are {sizes[0]}, its mask {sizes[1]}.")
        frames = zip(before, after, mask, strict=False)
        shares = np.array([black_share(*pictures, self.luma, self.margin) for pictures in frames])
        share = float(np.mean(shares > self.max_share))
        if share > self.max_frames:
            return Rejected(
                "black silhouette",
                f"in {share:.2f} of the frames more than {self.max_share} of the mask turned black "
                f"(at most {shares.max():.2f}); {self.max_frames} allowed",
            )
        return row
