"""MaskArea: masks that leave enough of the picture alone (ICVE, paired data: the area rule)."""

from __future__ import annotations

from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.masks import load_mask


class MaskArea(Stage):
    """Keeps masks that cover at most `max_area` of the frame in at least `min_share` of the frames.

    Reads `mask_path`; writes `mask_area`, the share of all pixels that is masked, 0..1. Rejects "empty mask",
    "mask too small" and "mask too large".

    Args:
        max_area: largest share of a frame, 0..1.
        min_share: share of the frames that must keep to it, 0..1.
        min_area: smallest share of all pixels; below, nobody sees the edit.

    Raises:
        ValueError: a share is not in 0..1.
    """

    batch_size = 16

    def __init__(self, max_area: float = 0.5, min_share: float = 0.8, min_area: float = 0.002) -> None:
        if not all(0 <= share <= 1 for share in (max_area, min_share, min_area)):
            raise ValueError("The areas and shares of MaskArea lie in 0..1.")
        self.max_area, self.min_share, self.min_area = max_area, min_share, min_area

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._check(row, work) for row in rows]

    def _check(self, row: Row, work: Workspace) -> Outcome:
        area_F = load_mask(work.file(row, "mask_path")).mean(axis=(1, 2))
        share, area = float((area_F <= self.max_area).mean()), float(area_F.mean())
        if area == 0:
            return Rejected("empty mask")
        if area < self.min_area:
            return Rejected("mask too small", f"covers {area:.4f} of the pixels, at least {self.min_area} wanted")
        if share < self.min_share:
            return Rejected(
                "mask too large",
                f"covers at most {self.max_area} of the frame in {share:.2f} of the frames, {self.min_share} wanted",
            )
        return {**row, "mask_area": round(area, 5)}
