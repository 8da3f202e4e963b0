"""Plain colour names of pixels, and colours to paint things in."""

from __future__ import annotations

import cv2
import numpy as np

UNNAMED = ""  # colours that people would call by different names
ACHROMATIC = frozenset({"black", "gray", "white"})

# What things are repainted in: CIELAB lightness, chroma and hue (degrees) of a typical surface of that name.
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (48.0, 68.0, 34.0),
    "orange": (66.0, 68.0, 63.0),
    "yellow": (82.0, 72.0, 95.0),
    "green": (52.0, 55.0, 138.0),
    "turquoise": (65.0, 38.0, 195.0),
    "blue": (42.0, 55.0, 285.0),
    "purple": (42.0, 55.0, 318.0),
    "pink": (68.0, 48.0, 356.0),
}


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (…, W, 3) float32, L in 0..100, of uint8 sRGB of the same shape."""
    flat = rgb.reshape(-1, rgb.shape[-2], 3).astype(np.float32) / 255.0
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """uint8 sRGB of CIELAB (…, W, 3) float32; colours beyond what sRGB shows are clipped."""
    flat = cv2.cvtColor(lab.reshape(-1, lab.shape[-2], 3).astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.round(np.clip(flat, 0.0, 1.0) * 255.0).astype(np.uint8).reshape(lab.shape)


def chroma_hue(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chroma, and hue in degrees 0..360, of CIELAB (…, 3)."""
    return np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360.0


def name_colours(lab: np.ndarray) -> np.ndarray:
    """Name of each CIELAB colour (…, 3): one of the paints, brown, beige, black, gray, white, or UNNAMED."""
    light = lab[..., 0]
    chroma, hue = chroma_hue(lab)
    warm = (hue >= 50) & (hue < 82)
    conditions = {
        "black": (light < 22) & (chroma < 14),
        "white": (light > 82) & (chroma < 9),
        "gray": (chroma < 8) & (light > 32) & (light < 78),
        UNNAMED: chroma < 16,
        "brown": warm & (((light < 48) & (chroma < 58)) | ((light < 60) & (chroma < 38))),
        "beige": warm & (chroma < 38),
        "orange": warm & (light >= 48),
        "pink": ((hue >= 338) | (hue < 30)) & (light > 58) & (chroma > 22),
        "red": ((hue < 50) | (hue >= 350)) & (chroma > 38),  # less is skin and wood
        "yellow": (hue >= 82) & (hue < 110) & (light > 58) & (chroma > 32),
        "green": (hue >= 110) & (hue < 170),
        "turquoise": (hue >= 170) & (hue < 230),
        "blue": (hue >= 234) & (hue < 308),
        "purple": (hue >= 310) & (hue < 345),
    }
    return np.select(list(conditions.values()), list(conditions), default=UNNAMED)


def main_colour(lab: np.ndarray) -> tuple[str, float]:
    """Most frequent name among colours (N, 3), and its share of them, 0..1; (UNNAMED, share) if most have none."""
    names, counts = np.unique(name_colours(lab), return_counts=True)
    best = int(counts.argmax())
    return str(names[best]), float(counts[best] / counts.sum())
