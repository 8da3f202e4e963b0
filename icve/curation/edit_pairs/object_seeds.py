"""Where in a clip one thing may be: by its own motion, or by a colour that nothing else has."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.colours import PAINTS, chroma_hue
from icve.curation.edit_pairs.clip_motion import ClipMotion, follow, spread_along

_SPEED = 0.3  # pixels per frame (at the reduced size) below which own motion is noise
_CONTRAST = 4.0  # times the typical residual of a frame
_FADE = 0.8  # how much of its evidence a place keeps from frame to frame: things pause
_HUE = 24.0  # degrees around a hue that still look like it
_CHROMA = 30.0  # least chroma of a colour that stands out


def moving_seeds(motion: ClipMotion, largest: float) -> np.ndarray | None:
    """The clearest thing that moves against the scene, roughly: bool (F, h, w), or None.

    Evidence of own motion is carried along the flow in both directions; of the regions it forms, the one that moves
    most is followed from the frame where it is clearest.

    Args:
        motion: of the clip.
        largest: share of the frame that the thing may cover.
    """
    noise = np.maximum(np.median(motion.own, axis=(1, 2)) * _CONTRAST, _SPEED)
    evidence = motion.own / noise[:, None, None]
    past, future = spread_along(evidence, motion, lambda own, brought: np.maximum(own, _FADE * brought))
    strength = np.maximum(past, future)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    likely = np.stack([cv2.morphologyEx((s > 1).astype(np.uint8), cv2.MORPH_CLOSE, kernel) for s in strength])
    likely = np.stack([cv2.morphologyEx(frame, cv2.MORPH_OPEN, kernel) for frame in likely]).astype(bool)
    return follow_region(likely, np.minimum(strength, 4.0), motion, largest)


def coloured_seeds(lab: np.ndarray, motion: ClipMotion, largest: float) -> np.ndarray | None:
    """The clearest thing of a strong colour that little else in the clip has, roughly: bool (F, h, w), or None.

    Args:
        lab: CIELAB (F, h, w, 3) at the reduced size.
        motion: of the clip.
        largest: share of the frame that the thing may cover.
    """
    chroma, hue = chroma_hue(lab)
    best, best_score = None, 0.0
    for centre in (paint[2] for paint in PAINTS.values()):
        away = np.abs((hue - centre + 180) % 360 - 180)
        strength = np.where(away < _HUE, np.maximum(chroma - _CHROMA, 0), 0).astype(np.float32)
        if not largest > (strength > 0).mean() > 0.002:
            continue
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        likely = np.stack([cv2.morphologyEx((s > 0).astype(np.uint8), cv2.MORPH_OPEN, kernel) for s in strength])
        seeds = follow_region(likely.astype(bool), strength, motion, largest)
        if seeds is None:
            continue
        # Of all that has this colour, how much is this thing: "the red object" must be the only one.
        share = float(strength[seeds].sum() / strength.sum())
        score = share**2 * float(np.sqrt(seeds.mean()) * np.median(chroma[seeds]))
        if share > 0.8 and score > best_score:
            best, best_score = seeds, score
    return best


def follow_region(likely: np.ndarray, strength: np.ndarray, motion: ClipMotion, largest: float) -> np.ndarray | None:
    """One region of a clip, picked in the frame where it is clearest and followed along the flow.

    Args:
        likely: bool (F, h, w), where it may be.
        strength: float32 (F, h, w), how much speaks for it; regions are ranked by its sum.
        motion: of the clip.
        largest: share of the frame it may cover where it is picked.

    Returns:
        bool (F, h, w), or None if there is no region or it is lost on the way.
    """
    candidates = [_largest_region(mask, weight, largest) for mask, weight in zip(likely, strength, strict=True)]
    sums = [float(weight[mask].sum()) for mask, weight in zip(candidates, strength, strict=True)]
    # The median of the three best frames, so that one bad frame does not choose.
    start = int(np.argsort(sums)[-min(3, len(sums))])
    if sums[start] == 0:
        return None
    seeds = np.zeros_like(likely)
    seeds[start] = candidates[start]
    for t in range(start + 1, len(likely)):
        seeds[t] = _continued(seeds[t - 1], likely[t], motion.backward[t - 1])
    for t in range(start - 1, -1, -1):
        seeds[t] = _continued(seeds[t + 1], likely[t], motion.forward[t])
    return seeds if seeds.any(axis=(1, 2)).all() else None


def _continued(previous: np.ndarray, likely: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Where the region of the previous frame is now: what is likely near the place the flow carries it to."""
    expected = follow(previous.astype(np.float32), flow) > 0.5
    reach = max(2, round(0.2 * np.sqrt(previous.sum())))
    near = cv2.dilate(expected.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)).astype(bool)
    found = near & likely
    # Where the evidence breaks off, the flow alone carries the region on.
    return found if found.sum() > 0.5 * expected.sum() else expected | found


def _largest_region(mask: np.ndarray, weight: np.ndarray, largest: float) -> np.ndarray:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    sums = np.bincount(labels.ravel(), weight.ravel(), count)
    areas = np.bincount(labels.ravel(), minlength=count)
    sums[0] = 0
    sums[areas > largest * mask.size] = 0
    best = int(sums.argmax())
    return (labels == best) if sums[best] > 0 else np.zeros_like(mask)
