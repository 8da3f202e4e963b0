"""Measures that tell a mask of a whole thing from a mask of something else, without knowing what things are."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from icve.curation.edit_pairs.clip_motion import ClipMotion, follow, grown

_CONTRAST = 9.0  # CIELAB difference that people see as an edge
_MOVES = 0.3  # pixels per frame, at the reduced size of ClipMotion
_STEP = 2.5  # pixels at a height of 240 between a point of the outline and the colours on both sides of it


@dataclass(frozen=True)
class MaskQuality:
    """What is measured of a mask bool (F, H, W).

    Attributes:
        smallest, area, largest: share of the frame in the frame where it is least, in the median frame, where most.
        stability: mean over frames of the agreement with the next frame's mask moved along the flow.
        persistence: agreement of the middle frame's mask, moved along the flow to both ends of the clip, with the masks
            there, the lesser: whether it is the same thing from beginning to end.
        outline: share of the outline across which the colour changes visibly. Where a mask cuts through a thing, or
            includes what is not part of it, there is no edge.
        border: share of the outline that runs along the frame's border: how much the frame cuts off.
        compactness: 4π area / perimeter² of the median frame, 1 for a disc.
        leftover: share of what closely surrounds the mask that moves as the thing does, over the frames in which it
            moves: parts of it that the mask leaves out. 1 where it hardly moves and this cannot be told.
    """

    smallest: float
    area: float
    largest: float
    stability: float
    persistence: float
    outline: float
    border: float
    compactness: float
    leftover: float


def mask_quality(mask: np.ndarray, lab: np.ndarray, motion: ClipMotion) -> MaskQuality:
    """Measure a mask bool (F, H, W), not empty in any frame, on its clip in CIELAB (F, H, W, 3)."""
    areas = mask.mean(axis=(1, 2))
    size = motion.forward.shape[2:0:-1]
    small = np.stack([cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA) for m in mask])
    pairs = zip(small, small[1:], motion.forward, strict=False)
    stability = float(np.mean([_overlap(here, follow(there, flow)) for here, there, flow in pairs]))
    middle = len(small) // 2
    first = last = small[middle]
    for flow in motion.forward[:middle][::-1]:
        first = follow(first, flow)
    for flow in motion.backward[middle:]:
        last = follow(last, flow)
    persistence = min(_overlap(first, small[0]), _overlap(last, small[-1]))
    sampled = np.unique(np.linspace(0, len(mask) - 1, 9).round().astype(int))
    seen, cut, compact = zip(*(_outline(mask[t], lab[t]) for t in sampled), strict=True)
    sizes = float(areas.min()), float(np.median(areas)), float(areas.max())
    edges = float(np.mean(seen)), float(np.mean(cut)), float(np.median(compact))
    return MaskQuality(*sizes, stability, persistence, *edges, _leftover(small > 0.5, motion.own))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two masks (h, w) given as shares of their pixels: share of each that lies in the other, the lesser.

    A pixel beyond the outline still counts as in it: otherwise small things could never agree.
    """
    a, b = (a > 0.5).astype(np.uint8), (b > 0.5).astype(np.uint8)
    near = np.ones((3, 3), np.uint8)
    shares = [(one & cv2.dilate(other, near)).sum() / max(one.sum(), 1) for one, other in ((a, b), (b, a))]
    return float(min(shares))


def _leftover(small: np.ndarray, own: np.ndarray) -> float:
    """See MaskQuality; mask and own motion at the reduced size (F, h, w)."""
    shares = []
    for mask, speed in zip(small, own, strict=True):
        typical = float(np.median(speed[mask])) if mask.any() else 0.0
        if typical < _MOVES:
            continue
        # Flow is smooth: it carries a thing's motion some pixels beyond its outline.
        if (ring := grown(mask, 14) & ~grown(mask, 5)).any():
            shares.append(float((speed[ring] > 0.6 * typical).mean()))
    return float(np.mean(shares)) if len(shares) >= 3 else 1.0


def _outline(mask: np.ndarray, lab: np.ndarray) -> tuple[float, float, float]:
    """Share of the outline with an edge, share along the frame's border, and compactness."""
    height, width = mask.shape
    solid = mask.astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(contours)[:, 0].astype(np.float32)
    perimeter = sum(cv2.arcLength(contour, True) for contour in contours)
    step = _STEP * max(1.0, min(height, width) / 240)
    x, y = points.T
    at_border = (x < 2) | (y < 2) | (x > width - 3) | (y > height - 3)
    if at_border.all():
        return 0.0, 1.0, 0.0
    signed: np.ndarray = cv2.distanceTransform(solid, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - solid, cv2.DIST_L2, 5)
    signed = cv2.GaussianBlur(signed, (0, 0), step)
    inward = np.stack([cv2.Sobel(signed, cv2.CV_32F, 1, 0), cv2.Sobel(signed, cv2.CV_32F, 0, 1)], -1)
    column, row = x.astype(int), y.astype(int)
    normal = inward[row, column]
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    smooth = cv2.GaussianBlur(lab, (0, 0), step / 2)
    sides = [
        cv2.remap(smooth, (x + shift * normal[:, 0])[None], (y + shift * normal[:, 1])[None], cv2.INTER_LINEAR)[0]
        for shift in (step, -step)
    ]
    difference = np.linalg.norm(sides[0] - sides[1], axis=-1)[~at_border]
    compactness = 4 * np.pi * mask.sum() / max(perimeter, 1.0) ** 2
    return float((difference > _CONTRAST).mean()), float(at_border.mean()), float(compactness)
