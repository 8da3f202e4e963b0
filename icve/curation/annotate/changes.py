"""What stands in one clip and not in another of the same scene: things that came, went, moved or changed colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from icve.curation.annotate.camera import correlation
from icve.curation.colours import ACHROMATIC, UNNAMED, main_colour, to_lab

# Distances are of colours in CIE Lab (L 0..100): 2 are just seen, 14 are told apart through compression.
_CLEAR = 14.0
_EDGE = 10.0
_NAMED = 0.6  # share of a thing that must have one colour for it to be called by that colour
_NEAR = 15  # pixels across: the size of the places along an outline whose sides are compared
_SLACK = 2  # pixels by which alignment may be off


@dataclass(frozen=True)
class Change:
    """One thing that changed.

    Attributes:
        kind: what became of it.
        colour: its name, in the source (for "add" in the target).
        place: its centre (x, y) as fractions of the picture.
        area: its share of the picture.
        new_colour: for "recolour", its name in the target.
        new_place: for "move", where it went.
    """

    kind: Literal["add", "remove", "move", "recolour"]
    colour: str
    place: tuple[float, float]
    area: float
    new_colour: str = ""
    new_place: tuple[float, float] = (0.0, 0.0)


def find_change(
    source: np.ndarray, target: np.ndarray, seen: np.ndarray, min_area: float, max_area: float
) -> Change | str:
    """The one thing that changed between two clips, or in a few words why none can be named.

    What a clip shows is the median over its frames, so that whatever moves within a clip is left out. The target's
    light, contrast and saturation are fitted to the source's before the two are compared.

    Args:
        source, target: (K, H, W, 3) uint8 RGB, frames of both clips carried into one view.
        seen: (H, W) bool, what all of them show.
        min_area: least share of the picture that a thing covers.
        max_area: largest share of the picture that may have changed at all.
    """
    before, after = _Steady(source), _Steady(target)
    after.lab = _same_light(before.lab, after.lab, seen)
    changed = (_difference(before.lab, after.lab) > _CLEAR + 2 * (before.unrest + after.unrest)) & seen
    opened = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")
    areas = stats[order, cv2.CC_STAT_AREA] / closed.size
    if not len(areas) or areas[0] < min_area:
        return f"the largest change covers {areas.max(initial=0):.2%}, at least {min_area:.2%} wanted"
    if areas.sum() > max_area:
        return f"changes cover {areas.sum():.1%}, at most {max_area:.1%} allowed"
    blobs = [_Blob(labels == label, closed > 0, seen) for label in order[:2]]
    if areas[0] >= 0.7 * areas.sum():
        return _one(blobs[0], before, after)
    if areas[:2].sum() >= 0.8 * areas.sum() and areas[1] >= 0.4 * areas[0]:
        return _two(blobs, before, after)
    return f"{len(areas)} places changed, none above all others"


class _Steady:
    """What a clip shows throughout: ``rgb`` (H, W, 3) uint8, ``lab`` (H, W, 3) float32 and the ``unrest`` (H, W)."""

    def __init__(self, frames: np.ndarray) -> None:
        self.rgb = np.median(frames, axis=0).astype(np.uint8)
        self.lab = to_lab(self.rgb)
        self.unrest = np.median([_distance(to_lab(frame), self.lab) for frame in frames], axis=0)


class _Blob:
    """Where a change is: ``inside``, the ``ring`` around it that did not change, and its ``outline``, (H, W) bool."""

    def __init__(self, mask: np.ndarray, changed: np.ndarray, seen: np.ndarray) -> None:
        self.mask = mask
        inner = _eroded(mask, 5)
        self.inside = inner if inner.any() else mask
        self.ring = _dilated(mask, 21) & ~_dilated(changed, 7) & seen
        outline = _dilated(mask, 3) & ~_eroded(mask, 3)
        border = np.zeros_like(mask)
        border[3:-3, 3:-3] = True
        self.outline = outline & border & _eroded(seen, 7)
        rows, columns = np.nonzero(mask)
        self.place = (float(columns.mean()) / mask.shape[1], float(rows.mean()) / mask.shape[0])

    @property
    def area(self) -> float:
        return float(self.mask.mean())

    def colour(self, clip: _Steady) -> np.ndarray:
        return np.median(clip.lab[self.inside], axis=0)

    def name(self, clip: _Steady) -> str:
        """Of its colour as it is seen, UNNAMED if it has not one colour."""
        name, share = main_colour(to_lab(clip.rgb[self.inside]))
        return name if share >= _NAMED else UNNAMED

    def stands_out(self, clip: _Steady) -> float:
        """How far its colour is from what surrounds it."""
        return _norm(self.colour(clip) - np.median(clip.lab[self.ring], axis=0)) if self.ring.any() else 0.0

    def alone(self, clip: _Steady) -> bool:
        """Whether it is a whole thing: what surrounds it has not its colour."""
        alike = np.linalg.norm(clip.lab[self.ring] - self.colour(clip), axis=1) < _CLEAR
        return bool(len(alike)) and float(alike.mean()) < 0.1

    def outlined(self, clip: _Steady) -> float:
        """Share of its outline along which both sides differ: 1 where a thing is, little where only ground is.

        The sides are compared by their mean colours nearby, which the ground's own texture hardly changes.
        """
        inside, outside = (
            cv2.boxFilter(np.dstack([clip.lab * side[..., None], side]), -1, (_NEAR, _NEAR), normalize=False)
            for side in (self.mask.astype(np.float32), (~self.mask).astype(np.float32))
        )
        contrast = _distance(*(side[..., :3] / np.maximum(side[..., 3:], 1) for side in (inside, outside)))
        return float((contrast[self.outline] > _EDGE).mean()) if self.outline.any() else 0.0


def _one(blob: _Blob, before: _Steady, after: _Steady) -> Change | str:
    outlined = blob.outlined(before), blob.outlined(after)
    out = blob.stands_out(before), blob.stands_out(after)
    measured = f"outlined {outlined[0]:.0%} before and {outlined[1]:.0%} after, contrast {out[0]:.0f} and {out[1]:.0f}"
    if min(outlined) >= 0.7:
        return _recoloured(blob, before, after) or f"something changed that is neither new nor gone ({measured})"
    there = int(outlined[1] > outlined[0])
    sure = outlined[there] >= 0.7 and outlined[there] - outlined[1 - there] >= 0.35
    if not sure or out[there] < max(_CLEAR, 1.5 * out[1 - there]):
        return f"it is not clear whether something came or went ({measured})"
    clip = (before, after)[there]
    if not blob.alone(clip):
        return "what came or went is a part of something"
    name = blob.name(clip)
    if not name:
        return "what came or went has no one colour"
    return Change("add" if there else "remove", name, blob.place, blob.area)


def _recoloured(blob: _Blob, before: _Steady, after: _Steady) -> Change | None:
    """A recolouring: the same shading under another hue (from black to white would be a matter of light)."""
    old, new = blob.name(before), blob.name(after)
    if not old or not new or old == new or {old, new} <= ACHROMATIC:
        return None
    same, textured = correlation(before.lab[..., 0] * 2.55, after.lab[..., 0] * 2.55)
    shading = blob.inside & textured
    if shading.sum() > 0.2 * blob.inside.sum() and (same[shading] > 0.5).mean() < 0.6:
        return None
    return Change("recolour", old, blob.place, blob.area, new_colour=new)


def _two(blobs: list[_Blob], before: _Steady, after: _Steady) -> Change | str:
    """A thing that left one place and stands in another: the same colour there, the ground's colour where it was."""
    for old, new in (blobs, blobs[::-1]):
        colour = old.colour(before)
        left = old.stands_out(before) >= max(_CLEAR, 1.5 * old.stands_out(after))
        came = new.stands_out(after) >= max(_CLEAR, 1.5 * new.stands_out(before))
        name = old.name(before)
        same = name and name == new.name(after) and _norm(colour - new.colour(after)) < _CLEAR
        if left and came and same and old.alone(before) and new.alone(after):
            return Change("move", name, old.place, old.area, new_place=new.place)
    return "two places changed, but nothing went from one to the other"


def _same_light(before: np.ndarray, after: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """``after`` with a gain and an offset for each channel that bring it closest to ``before`` where it is alike."""
    result = after.copy()
    for channel in range(3):
        x, y = after[..., channel][seen], before[..., channel][seen]
        gain, offset = 1.0, float(np.median(y) - np.median(x))
        for _ in range(5):
            error = np.abs(gain * x + offset - y)
            alike = error <= max(2.0, 1.5 * float(np.median(error)))
            spread = float(x[alike].var())
            if spread > 1.0:  # a flat picture says nothing about contrast
                joint = float(((x[alike] - x[alike].mean()) * (y[alike] - y[alike].mean())).mean())
                gain = float(np.clip(joint / spread, 0.2, 5.0))
            offset = float((y[alike] - gain * x[alike]).mean())
        result[..., channel] = gain * after[..., channel] + offset
    return result


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance (H, W) of two Lab pictures, of each pixel to the other's colours within the slack."""
    kernel = np.ones((2 * _SLACK + 1, 2 * _SLACK + 1), np.uint8)

    def beyond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.maximum(0, np.maximum(x - cv2.dilate(y, kernel), cv2.erode(y, kernel) - x)), axis=2)

    return np.minimum(beyond(a, b), beyond(b, a))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a - b, axis=2)


def _norm(colour: np.ndarray) -> float:
    return float(np.linalg.norm(colour))


def _dilated(mask: np.ndarray, size: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def _eroded(mask: np.ndarray, size: int) -> np.ndarray:
    return cv2.erode(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
