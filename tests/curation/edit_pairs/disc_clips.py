"""Clips of a disc before a textured background, of which everything is known."""

import cv2
import numpy as np

RED = (200, 40, 45)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A grey-green picture (H, W, 3) uint8 with detail at several scales and no strong colour."""
    rng = np.random.default_rng(seed)
    grey = sum(cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), s) * s for s in (1.5, 4, 10))
    grey = 120 + 30 * grey / grey.std()
    return np.clip(grey[..., None] + np.array([-4, 4, -6]), 0, 255).astype(np.uint8)


def disc_clip(
    frames: int = 13,
    size: tuple[int, int] = (96, 160),
    step: float = 6.0,
    pan: float = 1.0,
    radius: int = 13,
    colour: tuple[int, int, int] = RED,
    start: float = 35.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip, mask of the disc bool (F, H, W), and the clip without the disc.

    The disc moves by ``step`` pixels per frame through the scene, over which the camera pans by ``pan``.
    """
    height, width = size
    scene = texture(height, width + round(abs(pan) * frames) + 8)
    rng = np.random.default_rng(1)
    grain = np.clip(rng.normal(0, 18, (2 * radius + 1, 2 * radius + 1, 1)), -30, 30)
    clip, masks, empty = [], [], []
    y, x = np.mgrid[:height, :width]
    for t in range(frames):
        left = pan * t
        matrix = np.array([[1, 0, -left], [0, 1, 0]], np.float32)
        background = cv2.warpAffine(scene, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        centre = start + (step - pan) * t, height / 2
        mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
        dx = np.clip(np.round(x - centre[0]).astype(int) + radius, 0, 2 * radius)
        dy = np.clip(np.round(y - centre[1]).astype(int) + radius, 0, 2 * radius)
        painted = np.clip(np.array(colour) + grain[dy, dx], 0, 255)
        clip.append(np.where(mask[..., None], painted, background).astype(np.uint8))
        masks.append(mask)
        empty.append(background)
    return np.stack(clip), np.stack(masks), np.stack(empty)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
