"""Styles as fixed filters of a clip: the same picture always gets the same look, so the result does not flicker.

Palettes are one for the whole clip, paper and screens stand still, and thresholds are soft: what changes little in the
clip changes little in its style.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from icve.curation.colours import to_lab, to_rgb

Filter = Callable[[np.ndarray], Iterable[np.ndarray]]  # (F, H, W, 3) float32 RGB in 0..1 → the frames of the same


def apply_style(frames: np.ndarray, style: str) -> np.ndarray:
    """Restyle a clip (F, H, W, 3) uint8 RGB. Raises KeyError for an unknown style; `STYLES` names them."""
    styled = np.stack(list(STYLES[style](frames.astype(np.float32) / 255.0)))
    return np.round(np.clip(styled, 0.0, 1.0) * 255.0).astype(np.uint8)


def _unit(frames: np.ndarray) -> float:
    """Pixels that correspond to one at a height of 240: strokes and dots grow with the resolution."""
    return max(1.0, min(frames.shape[1:3]) / 240)


def _grey(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114], np.float32)


def _blurred(frame: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), sigma)


def _levels(grey: np.ndarray) -> np.ndarray:
    """Grey stretched to the range 0..1 between the clip's 1st and 99th percentile."""
    low, high = np.percentile(grey[:: max(1, len(grey) // 4)], (1, 99))
    return np.clip((grey - low) / max(high - low, 0.1), 0.0, 1.0)


def _grain(shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Texture of paper or canvas (H, W) float32, mean 0 and standard deviation 1, the same for every clip."""
    noise: np.ndarray = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    return noise / noise.std()


def _ink(grey: np.ndarray, unit: float, sharpness: float = 14.0) -> np.ndarray:
    """Dark lines (H, W), 0 ink to 1 paper, of a grey frame: an extended difference of Gaussians."""
    fine, coarse = _blurred(grey, 0.9 * unit), _blurred(grey, 1.6 * 0.9 * unit)
    difference = fine - 0.97 * coarse - 0.005
    return np.clip(1.0 + np.tanh(sharpness * np.minimum(difference, 0.0) * 2.0), 0.0, 1.0)


def _pencil(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    grey = _levels(_grey(frames))
    grain = _grain(grey.shape[1:], 0.6 * unit)
    y, x = np.mgrid[: grey.shape[1], : grey.shape[2]].astype(np.float32)
    hatching = 0.5 + 0.5 * np.sin((x + y) * (2 * np.pi / (4.5 * unit)) + 0.8 * _grain(grey.shape[1:], 6 * unit))
    for frame in grey:
        lines = np.clip(frame / np.maximum(_blurred(frame, 4.0 * unit), 1e-3), 0.0, 1.0) ** 2.5
        dark = np.clip(0.75 - _blurred(frame, 1.2 * unit), 0.0, 1.0)
        tone = 1.0 - dark * (0.35 + 0.5 * hatching)
        yield (lines * tone + 0.025 * grain)[..., None] * np.array([1.0, 0.99, 0.97], np.float32)


def _kuwahara(frame: np.ndarray, radius: float) -> np.ndarray:
    """Each pixel becomes the mean of the calmest of the areas around it: flat strokes with crisp borders."""
    size = max(3, 2 * round(radius) + 1)
    mean = cv2.blur(frame, (size, size))
    grey = _grey(frame)
    variance = np.maximum(cv2.blur(grey * grey, (size, size)) - cv2.blur(grey, (size, size)) ** 2, 0.0)
    total, weights = np.zeros_like(frame), np.zeros_like(grey)
    shift = size // 2
    for angle in np.arange(8) * (np.pi / 4):
        dx, dy = round(shift * np.cos(angle)), round(shift * np.sin(angle))
        move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved = [
            cv2.warpAffine(image, move, grey.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            for image in (mean, variance)
        ]
        # A soft choice: a hard one flips between areas that are nearly equally calm, and the strokes flicker.
        weight = 1.0 / (moved[1] + 2e-4) ** 4 * 1e-12
        total += weight[..., None] * moved[0]
        weights += weight
    return total / np.maximum(weights, 1e-30)[..., None]


def _vivid(frame: np.ndarray, gain: float) -> np.ndarray:
    grey = _grey(frame)[..., None]
    return grey + gain * (frame - grey)


def _oil(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    canvas = _grain(frames.shape[1:3], 0.9 * unit)
    for frame in frames:
        painted = _vivid(_kuwahara(frame, 3.0 * unit), 1.35)
        # Thick paint throws light and shade along its ridges.
        relief = _grey(painted) + 0.02 * canvas
        light = cv2.Sobel(relief, cv2.CV_32F, 1, 0) - cv2.Sobel(relief, cv2.CV_32F, 0, 1)
        yield painted + 0.12 * np.clip(light, -0.6, 0.6)[..., None]


def _watercolour(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    paper = _grain(frames.shape[1:3], 0.7 * unit)
    blotches = _grain(frames.shape[1:3], 9.0 * unit)
    for frame in frames:
        wash = _kuwahara(_kuwahara(frame, 3.0 * unit), 2.0 * unit)
        pigment = 1.0 - np.clip(0.12 + 0.95 * _vivid(wash, 1.25), 0.0, 1.0)
        smooth = _blurred(wash, 1.0 * unit)
        edge = np.abs(smooth - _blurred(wash, 2.5 * unit)).max(axis=-1)
        # Pigment gathers at the rims of a wash, and pools unevenly.
        density = 0.78 + 2.2 * np.clip(edge, 0.0, 0.25) + 0.06 * blotches + 0.04 * paper
        yield 1.0 - np.clip(pigment * density[..., None], 0.0, 1.0)


def _cartoon(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    for frame in frames:
        flat = _kuwahara(_kuwahara(frame, 2.0 * unit), 2.0 * unit)
        lab = to_lab(np.round(np.clip(flat, 0, 1) * 255).astype(np.uint8))
        steps = lab[..., 0] / 14.0
        whole = np.floor(steps)
        lab[..., 0] = 14.0 * (whole + 1.0 / (1.0 + np.exp(-12.0 * (steps - whole - 0.5)))) + 2.0
        lab[..., 1:] *= 1.5
        line = _ink(_grey(flat), unit, 20.0)
        yield to_rgb(lab).astype(np.float32) / 255.0 * line[..., None]


def _palette(pixels: np.ndarray, colours: int) -> np.ndarray:
    """The clip's palette (colours, 3), from CIELAB pixels (N, 3)."""
    cv2.setRNGSeed(0)
    sample = pixels[:: max(1, len(pixels) // 8000)]
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 15, 0.5)
    labels = np.zeros((len(sample), 1), np.int32)
    return cv2.kmeans(sample, min(colours, len(sample)), labels, criteria, 2, cv2.KMEANS_PP_CENTERS)[2]


def _pixel_art(frames: np.ndarray) -> Iterator[np.ndarray]:
    height, width = frames.shape[1:3]
    block = 5.0 * _unit(frames)
    size = (max(8, round(width / block)), max(8, round(height / block)))
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    lab = to_lab(np.round(np.clip(_vivid(small, 1.3), 0, 1) * 255).astype(np.uint8))
    palette = _palette(lab.reshape(-1, 3), 20)
    shown = None
    for frame in lab:
        distance = np.linalg.norm(frame[:, :, None] - palette, axis=-1)
        nearest = distance.argmin(-1)
        if shown is None:
            shown = nearest
        # A block keeps its colour until another is clearly nearer: noise must not make it blink.
        held = np.take_along_axis(distance, shown[..., None], -1)[..., 0]
        shown = np.where(distance.min(-1) < held - 3.0, nearest, shown)
        rgb = to_rgb(palette[shown])
        yield cv2.resize(rgb, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32) / 255.0


def _comic(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pitch = 5.0 * unit
    u, v = (x + y) * np.sqrt(0.5), (x - y) * np.sqrt(0.5)
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * u / pitch) + np.cos(2 * np.pi * v / pitch))
    for frame in frames:
        flat = _vivid(_kuwahara(frame, 2.0 * unit), 1.7)
        shade = _grey(flat)
        # Dots grow where the picture is darker; a light tint of its own colour stays between them.
        dots = 1.0 / (1.0 + np.exp(-14.0 * (screen - (0.15 + 0.75 * np.clip(shade, 0, 1)))))
        tint = np.clip(0.35 + 0.85 * flat, 0.0, 1.0)
        inked = tint * (1.0 - dots[..., None]) + dots[..., None] * np.clip(0.7 * flat, 0, 1)
        yield inked * _ink(_grey(_blurred(frame, 1.0 * unit)), unit, 20.0)[..., None]


def _black_and_white(frames: np.ndarray) -> np.ndarray:
    grey = _levels(_grey(frames))
    curved = grey + 0.12 * np.sin(2 * np.pi * (grey - 0.5)) * np.abs(grey - 0.5) * 2
    return np.repeat(curved[..., None], 3, axis=-1)


def _sepia(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    vignette = 1.0 - 0.28 * np.clip(x * x + y * y - 0.35, 0.0, 1.4)
    tone = _levels(_grey(frames)) * vignette
    return tone[..., None] * np.array([1.0, 0.83, 0.60], np.float32) + np.array([0.07, 0.04, 0.01], np.float32)


def _neon(frames: np.ndarray) -> Iterator[np.ndarray]:
    unit = _unit(frames)
    for frame in frames:
        smooth = _blurred(_kuwahara(frame, 1.5 * unit), 0.8 * unit)
        dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *axes, scale=0.125) for axes in ((1, 0), (0, 1)))
        edge = np.sqrt(dx * dx + dy * dy).max(axis=-1)
        line = np.clip(9.0 * edge / (0.25 + 4.0 * _blurred(edge, 12.0 * unit)) - 0.08, 0.0, 1.0)[..., None]
        hue = np.clip(_vivid(smooth, 3.0) / np.maximum(smooth.max(axis=-1, keepdims=True), 0.08), 0.0, 1.0)
        hue = hue / np.maximum(hue.max(axis=-1, keepdims=True), 0.3)
        glow = _blurred(line * hue, 3.5 * unit)
        yield 0.08 * smooth + line * (0.25 + 0.75 * hue) + 0.9 * glow


STYLES: dict[str, Filter] = {
    "pencil sketch": _pencil,
    "oil painting": _oil,
    "watercolour": _watercolour,
    "cartoon": _cartoon,
    "pixel art": _pixel_art,
    "comic print": _comic,
    "black and white": _black_and_white,
    "sepia": _sepia,
    "neon": _neon,
}
