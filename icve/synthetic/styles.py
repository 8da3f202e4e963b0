"""The named styles: fixed functions of a frame's pixels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def apply_style(frames: np.ndarray, style: str) -> np.ndarray:
    """Restyle uint8 frames (F, H, W, 3); the result depends on each frame alone.

    Raises:
        KeyError: the style has no definition.
    """
    function = _FUNCTIONS[style]
    result = np.stack([function(frame.astype(np.float32) / 255.0) for frame in frames])
    return np.round(np.clip(result, 0.0, 1.0) * 255.0).astype(np.uint8)


def _grey(frame: np.ndarray) -> np.ndarray:
    return (frame @ _LUMA)[..., None]


def _tinted(frame: np.ndarray, gain: tuple[float, ...], offset: tuple[float, ...]) -> np.ndarray:
    return frame * np.array(gain, np.float32) + np.array(offset, np.float32)


def _pixel_art(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    block = max(4, round(np.sqrt(height * width) / 8))  # 8 px at 64x64
    size = (max(1, width // block), max(1, height // block))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    small = np.round(np.clip(0.5 + 1.6 * (small - 0.42), 0.0, 1.0) * 2.0) / 2.0
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _cartoon(frame: np.ndarray) -> np.ndarray:
    sigma = np.sqrt(frame.shape[0] * frame.shape[1]) / 50
    smooth = cv2.GaussianBlur(frame, (0, 0), sigma)
    grey = _grey(smooth)
    vivid = np.round(np.clip(grey + 2.0 * (smooth - grey) + 0.12, 0.0, 1.0) * 4.0) / 4.0
    return vivid * (1.0 - np.clip(4.0 * _edges(smooth) - 0.5, 0.0, 0.9))


def _sketch(frame: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(frame, (0, 0), np.sqrt(frame.shape[0] * frame.shape[1]) / 64)
    return np.repeat(1.0 - np.clip(5.0 * _edges(smooth) - 0.15, 0.0, 0.95), 3, axis=-1)


def _edges(smooth: np.ndarray) -> np.ndarray:
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=0.125)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=0.125)
    return np.sqrt(dx * dx + dy * dy).max(axis=-1, keepdims=True)


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "black and white": lambda frame: np.repeat(0.5 + 1.25 * (_grey(frame) - 0.45), 3, axis=-1),
    "sepia": lambda frame: _tinted(_grey(frame), (1.15, 0.86, 0.50), (0.12, 0.07, 0.0)),
    "negative": lambda frame: 1.0 - frame,
    "pixel art": _pixel_art,
    "cartoon": _cartoon,
    "sketch": _sketch,
    "sunset": lambda frame: _tinted(frame, (1.05, 0.62, 0.35), (0.30, 0.06, 0.0)),
    "night": lambda frame: _tinted(0.5 * frame + 0.5 * _grey(frame), (0.22, 0.34, 0.62), (0.0, 0.01, 0.06)),
}
