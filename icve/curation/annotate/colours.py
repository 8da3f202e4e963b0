"""Names of colours, where a colour has one that nobody would dispute."""

from __future__ import annotations

import cv2
import numpy as np

ACHROMATIC = frozenset({"black", "gray", "white"})

# Hues by the degrees they begin at. Between gray and a hue, and between gray and white, there is room for doubt.
_HUES = (
    (0, "red"),
    (15, "orange"),
    (42, "yellow"),
    (70, "green"),
    (160, "cyan"),
    (198, "blue"),
    (258, "purple"),
    (300, "pink"),
    (344, "red"),
)
_NAMES = ("", *dict.fromkeys(name for _, name in _HUES), "brown", *sorted(ACHROMATIC))


def colour_name(pixels: np.ndarray, share: float = 0.6) -> str | None:
    """The name that at least ``share`` of the pixels (N, 3) uint8 RGB have; None where no name has as many."""
    counts = np.bincount(_named(pixels), minlength=len(_NAMES))
    counts[0] = 0
    best = int(counts.argmax())
    return _NAMES[best] if counts[best] and counts[best] >= share * len(pixels) else None


def _named(pixels: np.ndarray) -> np.ndarray:
    """Index into _NAMES of each pixel, (N,); 0 for what lies between two."""
    if not len(pixels):
        return np.zeros(0, np.int64)
    hue, saturation, value = cv2.cvtColor(pixels.astype(np.float32)[None] / 255, cv2.COLOR_RGB2HSV)[0].T
    of_hue = np.array([_NAMES.index(name) for _, name in _HUES])
    names = of_hue[np.searchsorted([start for start, _ in _HUES], hue, "right") - 1]

    def call(name: str, where: np.ndarray) -> None:
        names[where] = _NAMES.index(name) if name else 0

    warm = (hue < 50) | (hue > 350)
    call("brown", warm & (hue > 8) & (hue < 50) & (value < 0.6))
    call("brown", warm & (value < 0.5) & (saturation < 0.6))
    call("pink", (hue > 330) & (value > 0.75) & (saturation < 0.6))
    call("", (saturation < 0.3) | (value < 0.25))
    call("black", value < 0.15)
    call("gray", (saturation < 0.15) & (value > 0.36) & (value < 0.75))
    call("white", (saturation < 0.12) & (value > 0.86))
    return names
