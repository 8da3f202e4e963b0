"""A clip without one of its things: its place shows what other frames see there."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from icve.curation.edit_pairs.clip_motion import ClipMotion, grown

_CANVAS = 2.5  # frames' areas that the whole scene may take: beyond, the camera turns too far for one plane


@dataclass(frozen=True)
class Cleaned:
    """A clip without a thing.

    Attributes:
        frames: (F, H, W, 3) uint8.
        mask: bool (F, H, W), the pixels that were replaced.
        unseen: share of them that no frame shows and that were inpainted, 0..1.
        misfit: mean difference (0..255) around the mask between the frames and the scene as the other frames show it:
            how wrong the filling is to be expected.
        seam: edges along the border of the filling over edges around it; 1 where the border cannot be told.
    """

    frames: np.ndarray
    mask: np.ndarray
    unseen: float
    misfit: float
    seam: float


def clean(frames: np.ndarray, mask: np.ndarray, motion: ClipMotion) -> Cleaned | None:
    """Remove what a mask covers.

    All frames are laid over each other by the camera's homographies; each point of the scene gets its median over the
    frames where nothing covers it, and only what is covered in all of them is inpainted, once for the whole clip, so
    that nothing flickers. Light that differs from frame to frame is matched around the mask.

    Args:
        frames: uint8 RGB (F, H, W, 3).
        mask: bool (F, H, W).
        motion: of the clip.

    Returns:
        The cleaned clip, or None where the camera moves too far for its frames to be laid over each other.
    """
    height, width = frames.shape[1:3]
    unit = min(height, width) / 240
    covered = np.stack([grown(m, 4.0 * unit) for m in mask])
    placed = _placed(motion.to_first(), (height, width))
    if placed is None:
        return None
    matrices, canvas = placed
    plate, seen = _plate(frames, covered, matrices, canvas)
    hidden = np.zeros(canvas, np.uint8)
    for m, matrix in zip(covered, matrices, strict=True):
        hidden |= cv2.warpPerspective(m.astype(np.uint8), matrix, canvas[::-1], flags=cv2.INTER_NEAREST)
    unknown = ((hidden > 0) & ~seen).astype(np.uint8)
    plate = cv2.inpaint(plate, unknown, 4.0 * unit, cv2.INPAINT_TELEA)

    result, misfits, seams, unseen = [], [], [], 0.0
    for frame, hole, matrix in zip(frames, covered, matrices, strict=True):
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        back = cv2.warpPerspective(plate, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        guess = cv2.warpPerspective(unknown, matrix, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
        unseen += float((guess.astype(bool) & hole).sum())
        around = grown(hole, 8.0 * unit) & ~hole
        difference = frame.astype(np.float32) - back
        weight = around.astype(np.float32)
        sigma = max(6.0 * unit, 0.25 * np.sqrt(hole.sum()))
        spread = cv2.GaussianBlur(weight, (0, 0), sigma) + 1e-4
        light = cv2.GaussianBlur(difference * weight[..., None], (0, 0), sigma) / spread[..., None]
        misfits.append(np.abs(difference - light)[around].mean() if around.any() else 0.0)
        soft = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.2 * unit)[..., None]
        filled = frame + soft * (back + light - frame)
        result.append(np.round(np.clip(filled, 0, 255)).astype(np.uint8))
        seams.append(_seam(result[-1], hole, unit))
    return Cleaned(
        np.stack(result), covered, unseen / max(covered.sum(), 1), float(np.mean(misfits)), float(np.max(seams))
    )


def _placed(to_first: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Homographies (F, 3, 3) from frames to a canvas that holds all of them, and the canvas' (height, width)."""
    height, width = size
    corners = np.array([[[0, 0], [width, 0], [0, height], [width, height]]], np.float64)
    places = np.concatenate([cv2.perspectiveTransform(corners, matrix)[0] for matrix in to_first])
    low, high = np.floor(places.min(0)), np.ceil(places.max(0))
    if not np.isfinite(places).all() or np.prod(high - low) > _CANVAS * height * width:
        return None
    shift = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
    return shift @ to_first, (int(high[1] - low[1]), int(high[0] - low[0]))


def _plate(
    frames: np.ndarray, covered: np.ndarray, matrices: np.ndarray, canvas: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The scene (h, w, 3) uint8, median over frames, and bool (h, w) where at least two frames show it."""
    stack, counts = [], np.zeros(canvas, np.int64)
    for frame, hole, matrix in zip(frames, covered, matrices, strict=True):
        moved = cv2.warpPerspective(frame, matrix, canvas[::-1], flags=cv2.INTER_CUBIC)
        shows = cv2.warpPerspective((~hole).astype(np.uint8), matrix, canvas[::-1], flags=cv2.INTER_NEAREST) > 0
        moved[~shows] = 255  # sorted behind all that is seen
        stack.append(moved)
        counts += shows
    ordered = np.sort(np.stack(stack), axis=0)
    middle = np.maximum(counts - 1, 0) // 2
    return np.take_along_axis(ordered, middle[None, ..., None], axis=0)[0], counts >= 2


def _seam(frame: np.ndarray, hole: np.ndarray, unit: float) -> float:
    grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), unit)
    edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    rim = grown(hole, 1.5 * unit) & ~cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    around = grown(hole, 14.0 * unit) & ~grown(hole, 4.0 * unit)
    if not rim.any() or not around.any():
        return 1.0
    return float((edges[rim].mean() + 2.0) / (edges[around].mean() + 2.0))
