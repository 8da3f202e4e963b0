"""A second one of the thing in a clip: cut out, moved aside, and put back beside the first."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.edit_pairs.clip_motion import ClipMotion

_CALM = 0.35  # pixels per frame (at the reduced size of ClipMotion) below which nothing moves at a place


def copy_aside(frames: np.ndarray, mask: np.ndarray, motion: ClipMotion) -> tuple[np.ndarray, np.ndarray, str] | str:
    """A clip in which the masked thing stands a second time, to the left or right of itself.

    It is moved sideways only, so that it stands on the same ground as the first, seen from as far away, and by the same
    amount in all frames, so that it moves with the scene when the camera turns. The copy covers nothing of the first
    and nothing that moves.

    Args:
        frames: uint8 RGB (F, H, W, 3).
        mask: bool (F, H, W).
        motion: of the clip.

    Returns:
        The clip, the copy's mask bool (F, H, W) with its soft edge, and the side ("left", "right"); or in a few words
        why there is no such clip.
    """
    height, width = mask.shape[1:]
    if mask[:, :, :2].any() or mask[:, :, -2:].any() or mask[:, :2].any():
        return "the frame cuts it off"
    own = np.stack([cv2.resize(speed, (width, height)) for speed in motion.own])
    unit = min(height, width) / 240
    left, right = (int(edge) for edge in np.flatnonzero(mask.any(axis=(0, 1)))[[0, -1]])
    span = max(int(np.ptp(np.flatnonzero(m.any(axis=0)))) for m in mask if m.any()) + 1 + max(4, round(8 * unit))
    places = []
    for side, room, shift in (("left", left, -span), ("right", width - 1 - right, span)):
        moved = _shifted(mask, shift)
        if room >= span and not (moved & mask).any():
            places.append((float((own[moved] > _CALM).mean()), side, shift))
    if not places:
        return "there is no room beside it"
    unrest, side, shift = min(places)
    if unrest > 0.1:
        return f"{unrest:.0%} of the place beside it moves"
    soft = np.stack([_matte(m, unit) for m in mask])
    copied, alpha = _shifted(frames, shift), _shifted(soft, shift)[..., None]
    mixed = frames + alpha * (copied.astype(np.float32) - frames)
    return np.round(np.clip(mixed, 0, 255)).astype(np.uint8), alpha[..., 0] > 0.02, side


def _shifted(values: np.ndarray, columns: int) -> np.ndarray:
    """Values (F, H, W, …) moved to the right by so many columns, 0 where nothing was."""
    result = np.zeros_like(values)
    if columns > 0:
        result[:, :, columns:] = values[:, :, :-columns]
    else:
        result[:, :, :columns] = values[:, :, -columns:]
    return result


def _matte(mask: np.ndarray, unit: float) -> np.ndarray:
    """Opacity (H, W) float32: a soft edge just inside the mask, where no background shines through."""
    solid = cv2.erode(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    return cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 0.9 * unit)
