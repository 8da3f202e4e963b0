"""Instructions for clip pairs from measurement alone: for real clips without a model, and as a baseline for models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icve.curation.annotate.camera import CameraMove, Described, camera_move, find_view, is_still, warp
from icve.curation.annotate.changes import Change, find_change
from icve.curation.annotate.sampled_frames import sample_clips
from icve.curation.annotate.wording import camera_wording, change_wording
from icve.curation.stage import Outcome, Rejected, Row, RowStage, Workspace
from icve.data.media.video import probe

_MOMENTS = 5  # frames looked at in each clip
_MIN_SEEN = 0.6  # least share of the view that all of them must show for an object's change to be looked for


class MeasuredAnnotator(RowStage):
    """Adds ``instruction``, ``edit_type`` and ``measured`` where measurement shows what leads from source to target.

    What it can tell: where the camera panned or tilted, or that it zoomed (``camera_pan``, ``camera_zoom``); and under
    a camera that stays, that one thing with a clear colour came, went, moved or changed colour (``add``, ``remove``,
    ``move``, ``recolour``). Light, contrast and saturation are measured away. Where nothing can be told with
    confidence, and for everything that needs understanding, the row is rejected as "nothing to say".

    Reads ``source_path``, ``target_path`` and, where there, their ``_start`` and ``_frames``.

    Args:
        min_shift: least shift of the view, as a fraction of the picture's width or height, that is called a pan.
        min_zoom: least factor, above 1, by which things grow or shrink, that is called a zoom.
        min_agreement: least share of the textured places that must look the same after the camera's motion is undone.
        min_area, max_area: bounds of the share of the picture that an object's change covers.
        side: pixels of the longer side that frames are measured at.
        seed: chooses among equal wordings.

    Raises:
        ValueError: a parameter out of its range.
    """

    def __init__(
        self,
        min_shift: float = 0.045,
        min_zoom: float = 1.1,
        min_agreement: float = 0.4,
        min_area: float = 0.005,
        max_area: float = 0.3,
        side: int = 384,
        seed: int = 0,
    ) -> None:
        if not (0 < min_shift < 1 < min_zoom and 0 < min_agreement <= 1 and 0 < min_area < max_area <= 1):
            raise ValueError(
                "min_shift, min_agreement, min_area and max_area must be between 0 and 1, min_area below max_area, and "
                "min_zoom above 1."
            )
        if side < 128:
            raise ValueError("side must be at least 128 pixels, or there is too little to measure.")
        self.min_shift, self.min_zoom, self.min_agreement = min_shift, min_zoom, min_agreement
        self.min_area, self.max_area, self.side, self.seed = min_area, max_area, side, seed

    def outcome(self, row: Row, work: Workspace) -> Outcome:
        height, width = probe(work.file(row, "source_path")).displayed
        scale = self.side / max(height, width)
        size = (round(height * scale), round(width * scale))
        found = self.measure(*sample_clips(row, work, _MOMENTS, size))
        if isinstance(found, str):
            return Rejected("nothing to say", found)
        rng = self.random(row, self.seed)
        if isinstance(found, CameraMove):
            instruction, kind = camera_wording(found, rng)
            measured = f"right {found.right:+.3f}, up {found.up:+.3f}, scale {found.scale:.3f}"
        else:
            instruction, kind = change_wording(found, rng)
            measured = f"area {found.area:.4f}"
        return {**row, "instruction": instruction, "edit_type": kind, "measured": measured}

    def measure(self, source: np.ndarray, target: np.ndarray) -> CameraMove | Change | str:
        """What changed from one clip to the other, or why nothing can be said.

        Args:
            source, target: (K, H, W, 3) uint8 RGB, K frames of each at the same moments of its time.
        """
        before, after = [Described(frame) for frame in source], [Described(frame) for frame in target]
        views = [find_view(a, b) for a, b in zip(before[::2], after[::2], strict=True)]
        move = camera_move(views, source.shape[1:3], self.min_shift, self.min_zoom, self.min_agreement)
        if isinstance(move, CameraMove):
            return move
        reference = before[len(before) // 2]
        (source, seen_before), (target, seen_after) = (
            _aligned(frames, described, reference, self.min_agreement)
            for frames, described in ((source, before), (target, after))
        )
        if min(len(source), len(target)) < _MOMENTS // 2 + 1:
            return move or "too few moments of the clips show one view of the scene"
        seen = seen_before & seen_after
        if seen.mean() < _MIN_SEEN:
            return f"the clips have {seen.mean():.0%} of the view in common"
        return find_change(source, target, seen, self.min_area, self.max_area)


def _aligned(
    frames: np.ndarray, described: Sequence[Described], reference: Described, min_agreement: float
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the frames that show the reference's view, carried into it, and what all of them show, (H, W) bool."""
    kept, seen = [], np.ones(frames.shape[1:3], bool)
    for frame, here in zip(frames, described, strict=True):
        if is_still(here.grey, reference.grey):  # as it is: carrying it by a fraction of a pixel would only blur it
            kept.append(frame)
            continue
        view = find_view(here, reference)
        if view is not None and view.agreement >= min_agreement:
            warped, visible = warp(frame, view.matrix)
            kept.append(warped)
            seen &= visible
    return np.array(kept), seen
