"""DilateMask: masks grow by a random margin, so that inpainting also redraws edges and shadows (ICVE, paired data)."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.stage import Outcome, Row, Stage, Workspace
from icve.data.masks import load_mask, save_mask


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """A mask (F, H, W) bool grown by a disc of `radius` pixels, frame by frame."""
    # Distances to the mask cost the same for every radius; a large kernel does not. Without a mask they are huge.
    outside = (~mask).astype(np.uint8)
    return np.stack([cv2.distanceTransform(o, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius for o in outside])


class DilateMask(Stage):
    """One margin per row, between `min_pixels` and `max_pixels` where the shorter side has `reference` pixels.

    Reads `mask_path`; writes `masks/<key>-dilated.npz`, `mask_path` (now that file), `object_mask_path` (the file from
    before, the thing itself) and `mask_margin` (pixels of this clip).

    Args:
        min_pixels, max_pixels: range of the margin, drawn evenly.
        reference: pixels of the shorter side that the range is for.
        seed: of the draw.

    Raises:
        ValueError: the range is empty or negative.
    """

    def __init__(self, min_pixels: float = 20, max_pixels: float = 50, reference: int = 480, seed: int = 0) -> None:
        if not 0 <= min_pixels <= max_pixels or reference < 1:
            raise ValueError("DilateMask needs 0 <= min_pixels <= max_pixels and a reference of at least 1 pixel.")
        self.min_pixels, self.max_pixels, self.reference, self.seed = min_pixels, max_pixels, reference, seed

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._dilate(row, work) for row in rows]

    def _dilate(self, row: Row, work: Workspace) -> Row:
        mask = load_mask(work.file(row, "mask_path"))
        margin = self.random(row, self.seed).uniform(self.min_pixels, self.max_pixels)
        margin *= min(mask.shape[1:]) / self.reference
        file = work.output / "masks" / f"{row['key']}-dilated.npz"
        columns = {"mask_path": work.name(file), "object_mask_path": row["mask_path"], "mask_margin": round(margin, 2)}
        save_mask(file, dilate(mask, margin))
        return {**row, **columns}
