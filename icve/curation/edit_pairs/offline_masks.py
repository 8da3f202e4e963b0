"""One clear thing of a clip and its mask, from motion and colour alone: no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from icve.curation.colours import PAINTS, UNNAMED, main_colour, to_lab
from icve.curation.edit_pairs.clip_motion import ClipMotion, clip_motion
from icve.curation.edit_pairs.cut_out import cut_out
from icve.curation.edit_pairs.mask_quality import MaskQuality, mask_quality
from icve.curation.edit_pairs.object_seeds import coloured_seeds, moving_seeds
from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.masks import save_mask
from icve.data.media.video import read_frames

_COLUMNS = ("mask_path", "mask_area", "mask_leftover", "object", "object_colour", "object_kind")
_CAMERA_FIT = 0.4  # share of the flow that the camera's motion must explain for the rest to mean something
_WHOLE = 0.08  # leftover of masks that can be trusted to hold the whole thing
_NAMED = 0.6  # share of a thing that must have one colour for it to be called by that colour


@dataclass(frozen=True)
class FoundObject:
    """A thing found in a clip: its mask bool (F, H, W), "moving" or "coloured", and the name of its main colour."""

    mask: np.ndarray
    kind: str
    colour: str
    quality: MaskQuality

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Of two things, the one with the greater rank serves better."""
        whole = self.kind == "moving" and self.quality.leftover < _WHOLE
        return whole, self.kind == "coloured", self.quality.outline

    @property
    def phrase(self) -> str:
        """What to call it: true whatever it is."""
        words = ("the", "moving" if self.kind == "moving" else "", self.colour, "object")
        return " ".join(filter(None, words))


class OfflineMasks(Stage):
    """Finds the one thing of a clip that moves against the scene, or whose strong colour nothing else has.

    Candidates come from optical flow beyond the camera's own and from hue; GrabCut finds their outlines with one colour
    model for the whole clip. Only masks that keep to all limits are used: without knowing what things are, a doubtful
    mask is worth nothing.

    Reads `source_path`, `source_frames`, `width`, `height`. Writes `masks/<key>.npz` (`icve.data.masks`) and the
    columns `mask_path`, `mask_area` (median share of the frame), `mask_leftover` (`MaskQuality.leftover`), `object` (a
    phrase: "the red object", "the moving object"), `object_colour` ("" where it has several) and `object_kind`
    ("moving", "coloured"). Without a clear thing these are None and `no_object` says why, so that the clip may still be
    restyled; or the row is rejected.

    Args:
        min_area, max_area: share of the frame that the thing covers in every frame, 0..1.
        min_stability, min_persistence, min_outline, min_compactness, max_border: limits of what
            `icve.curation.edit_pairs.mask_quality.MaskQuality` measures, all 0..1.
        required: reject clips without a clear thing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        min_area: float = 0.006,
        max_area: float = 0.35,
        min_stability: float = 0.9,
        min_persistence: float = 0.75,
        min_outline: float = 0.85,
        min_compactness: float = 0.3,
        max_border: float = 0.25,
        required: bool = False,
    ) -> None:
        if not 0 < min_area < max_area < 1:
            raise ValueError(f"OfflineMasks needs 0 < min_area < max_area < 1, not {min_area} and {max_area}.")
        least = min_stability, min_persistence, min_outline, min_compactness
        if not all(0 <= limit <= 1 for limit in (*least, max_border)):
            raise ValueError("OfflineMasks needs limits of mask quality in 0..1.")
        self.least = dict(zip(("stability", "persistence", "outline", "compactness"), least, strict=True))
        self.min_area, self.max_area, self.max_border, self.required = min_area, max_area, max_border, required

    def seconds(self, row: Row) -> float:
        return 120.0 + 4e-6 * row["source_frames"] * row["width"] * row["height"]

    def __call__(self, rows: list[Row], work: Workspace) -> Sequence[Outcome]:
        return [self._mask(row, work) for row in rows]

    def _mask(self, row: Row, work: Workspace) -> Outcome:
        found, why = self.find(read_frames(work.file(row, "source_path")))
        if found is None:
            if self.required:
                return Rejected("no clear object", why)
            return {**row, **dict.fromkeys(_COLUMNS), "no_object": why}
        file = work.output / "masks" / f"{row['key']}.npz"
        save_mask(file, found.mask)
        measured = found.quality.area, found.quality.leftover
        values = work.name(file), *measured, found.phrase, found.colour, found.kind
        return {**row, **dict(zip(_COLUMNS, values, strict=True)), "no_object": None}

    def find(self, frames: np.ndarray) -> tuple[FoundObject | None, str]:
        """The clearest thing in frames (F, H, W, 3) uint8 RGB, or None and why there is none."""
        motion = clip_motion(frames)
        lab = to_lab(frames)
        size = motion.forward.shape[2:0:-1]
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in lab])
        seeds = {"coloured": coloured_seeds(small, motion, self.max_area)}
        reasons: list[str] = []
        objects: list[FoundObject] = []
        if np.median(motion.fit) >= _CAMERA_FIT:
            seeds["moving"] = moving_seeds(motion, self.max_area)
        else:
            reasons.append(f"moving: the camera's motion explains {np.median(motion.fit):.2f} of what moves")
        for kind, places in seeds.items():
            found = self._object(kind, frames, lab, places, motion)
            if isinstance(found, str):
                reasons.append(f"{kind}: {found}")
            else:
                objects.append(found)
        # A whole moving thing allows every edit, a coloured one only to be recoloured, a part of one hardly any.
        return max(objects, key=lambda found: found.rank, default=None), "; ".join(reasons)

    def _object(
        self, kind: str, frames: np.ndarray, lab: np.ndarray, seeds: np.ndarray | None, motion: ClipMotion
    ) -> FoundObject | str:
        """The thing at the seeds, or why it is not clear."""
        if seeds is None:
            return "nothing stands out"
        if seeds.mean() > self.max_area:
            return f"it covers {seeds.mean():.0%} of the frame"
        mask = cut_out(frames, seeds, motion)
        if not mask.any(axis=(1, 2)).all():
            return "it has no outline in some frames"
        quality = mask_quality(mask, lab, motion)
        if fault := self._fault(quality):
            return fault
        colour, share = main_colour(lab[mask])
        if kind == "coloured" and (share < _NAMED or colour not in (*PAINTS, "brown")):
            return f"its main colour {colour or 'has no name'} is {share:.2f} of it"
        return FoundObject(mask, kind, colour if share >= _NAMED else UNNAMED, quality)

    def _fault(self, quality: MaskQuality) -> str | None:
        if quality.smallest < self.min_area or quality.largest > self.max_area:
            covered = f"it covers {quality.smallest:.2%} to {quality.largest:.2%} of the frame"
            return f"{covered}, {self.min_area:.2%} to {self.max_area:.2%} wanted"
        for name, least in self.least.items():
            if (value := getattr(quality, name)) < least:
                return f"{name} {value:.2f}, at least {least:.2f} wanted"
        if quality.border > self.max_border:
            return f"{quality.border:.2f} of its outline is the frame's border, at most {self.max_border:.2f} wanted"
        return None
