"""From a rough idea of where a thing is to its outline in every frame: GrabCut with one colour model for the clip."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.edit_pairs.clip_motion import ClipMotion, spread_along

_KEY_FRAMES = 5  # that the colour models are learnt from
_CUT_SIDE = 160  # pixels of the shorter side at which outlines are cut: the time grows with the square
_ROUNDS = 2
_NO_BOX = (0, 0, 0, 0)  # GrabCut is told by labels what to look at
_MEMORY = 0.7  # how much a frame believes its neighbours


def cut_out(frames: np.ndarray, seeds: np.ndarray, motion: ClipMotion) -> np.ndarray:
    """The thing's mask, bool (F, H, W), consistent in time; empty frames where nothing holds together.

    Colours of the thing and of its surroundings are learnt over frames spread through the clip, so they are the same in
    all of them; each frame is then cut along its own edges. A second round starts from what the frames of the first
    agree on, each moved along the flow to the others: a part that stands still for a while was seen moving before.

    Args:
        frames: uint8 RGB (F, H, W, 3).
        seeds: bool (F, h, w) at the reduced size of ``motion``: roughly the thing.
        motion: of the clip.
    """
    height, width = frames.shape[1:3]
    shrink = min(1.0, _CUT_SIDE / min(height, width))
    size = (round(width * shrink), round(height * shrink))
    pixels = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    likely = seeds.astype(np.float32)
    for _ in range(_ROUNDS):
        rough = np.stack([cv2.resize(frame, size) > 0.5 for frame in likely])
        if not rough.any(axis=(1, 2)).all():
            return np.zeros(frames.shape[:3], bool)
        inside = _cut(pixels, rough)
        small = np.stack([cv2.resize(m, motion.forward.shape[2:0:-1], interpolation=cv2.INTER_AREA) for m in inside])
        likely = _agreed(small, motion)
    voted = inside + 2.0 * np.stack([cv2.resize(frame, size) for frame in likely]) > 1.5
    whole = [_whole(mask).astype(np.float32) for mask in voted]
    return np.stack([cv2.resize(mask, (width, height)) > 0.5 for mask in whole])


def _cut(pixels: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """One round of GrabCut: float32 (F, H, W), 1 inside."""
    labels = np.stack([_labels(mask) for mask in rough])
    crop = (slice(None), *_box(labels != cv2.GC_BGD, margin=0.06))
    cropped, labels = np.ascontiguousarray(pixels[crop]), np.ascontiguousarray(labels[crop])

    keys = np.unique(np.linspace(0, len(pixels) - 1, _KEY_FRAMES).round().astype(int))
    behind, front = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # GrabCut starts from k-means with OpenCV's own random numbers
    stacked = cropped[keys].reshape(-1, *cropped.shape[2:])
    learnt = labels[keys].reshape(stacked.shape[:2]).copy()
    cv2.grabCut(stacked, learnt, _NO_BOX, behind, front, 2, cv2.GC_INIT_WITH_MASK)

    inside = np.zeros(pixels.shape[:3], np.float32)
    for frame, label, out in zip(cropped, labels, inside[crop], strict=True):
        cut, _, _ = cv2.grabCut(frame, label.copy(), _NO_BOX, behind, front, 1, cv2.GC_EVAL_FREEZE_MODEL)
        out[:] = (cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)
    return inside


def _agreed(inside: np.ndarray, motion: ClipMotion) -> np.ndarray:
    """Share (F, h, w) of frames, nearer ones counting more, that have each point inside, moved there along the flow."""
    past, future = spread_along(inside, motion, lambda own, brought: (1.0 - _MEMORY) * own + _MEMORY * brought)
    return (past + future) / 2


def _labels(mask: np.ndarray) -> np.ndarray:
    """GrabCut's labels (H, W) uint8: surely inside the core, perhaps around, surely not far away."""
    radius = max(3.0, np.sqrt(mask.sum() / np.pi))
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    outer = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    labels = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    labels[outer < 0.5 * radius + 4] = cv2.GC_PR_BGD
    labels[mask] = cv2.GC_PR_FGD
    labels[inner > max(3.0, 0.35 * radius)] = cv2.GC_FGD
    return labels


def _whole(mask: np.ndarray) -> np.ndarray:
    """The mask's largest piece, with small holes closed and its outline smoothed."""
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(1.0, mask.shape[0] / 240)) > 0.5
    count, labels, stats, _ = cv2.connectedComponentsWithStats(smooth.astype(np.uint8))
    if count == 1:
        return np.zeros_like(mask)
    piece = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~piece).astype(np.uint8), connectivity=4)
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < 0.05 * piece.sum():
            piece |= holes == label
    return piece


def _box(mask: np.ndarray, margin: float) -> list[slice]:
    """Slices (rows, columns) that hold a mask (F, H, W), with a margin as a share of the longer side."""
    grow = round(margin * max(mask.shape[1:]))
    edges = [np.flatnonzero(mask.any(axis=axes))[[0, -1]] for axes in ((0, 2), (0, 1))]
    return [slice(max(0, int(first) - grow), int(last) + 1 + grow) for first, last in edges]
