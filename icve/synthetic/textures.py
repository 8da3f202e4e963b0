"""What the named things look like: background canvases and object sprites.

All textures are fixed functions of their name and resolution, so that "change the background to sand" or "add a red
star" has exactly one right answer. Fine grain lies over everything: a codec that keeps only low frequencies cannot
reproduce it, as with real footage.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import cv2
import numpy as np

from icve.synthetic.vocabulary import BACKGROUNDS, COLOURS

GRAIN = 0.03  # standard deviation of the pixel grain, of full scale 1


def _named_rng(*names: object) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _smooth_noise(rng: np.random.Generator, height: int, width: int, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Blurred white noise, zero mean, unit variance, float32 (height, width)."""
    noise: np.ndarray = rng.standard_normal((height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=max(sigma_x, 0.3), sigmaY=max(sigma_y, 0.3))
    return (noise - noise.mean()) / noise.std()


def _step(x: np.ndarray, softness: float) -> np.ndarray:
    """A soft step from 0 to 1 around x = 0."""
    return np.clip(x / softness + 0.5, 0.0, 1.0)


def _pattern(name: str, x: np.ndarray, y: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Mixing weight, 0 to 1, of the palette's second colour; x, y are in units of the frame's side, 0 at its centre."""
    height, width = x.shape
    pixel = 1.0 / unit
    if name == "grass":
        return 0.5 + 0.28 * _smooth_noise(rng, height, width, 0.5, unit / 26)
    if name == "sand":
        bend = 0.035 * np.sin(2 * np.pi * x * 2.0)
        return 0.5 + 0.32 * np.sin(2 * np.pi * (y + bend) * 5.0) + 0.1 * _smooth_noise(rng, height, width, 1, 1)
    if name == "water":
        wave = np.sin(2 * np.pi * (x * 1.5 + y * 4.0 + 0.15 * np.sin(2 * np.pi * x * 3.0)))
        return 0.5 + 0.35 * wave + 0.12 * _smooth_noise(rng, height, width, unit / 20, unit / 50)
    if name == "snow":
        return 0.55 + 0.22 * _smooth_noise(rng, height, width, unit / 12, unit / 12)
    if name == "a brick wall":
        row = np.floor(y * 6.0)
        along = x * 3.0 + 0.5 * (row % 2)
        tone = np.sin(12.9898 * np.floor(along) + 78.233 * row) * 0.15
        gap_y, gap_x = np.abs((y * 6.0) % 1.0 - 0.5) / 6.0, np.abs(along % 1.0 - 0.5) / 3.0
        inside = np.minimum(0.5 / 6.0 - gap_y, 0.5 / 3.0 - gap_x)
        return _step(inside - 0.012, 2 * pixel) * (0.85 + tone)
    if name == "a stone wall":
        points = rng.uniform(-1.2, 1.2, (90, 2)).astype(np.float32)
        distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
        order = np.argsort(distance, axis=-1)[..., :2]
        nearest, second = np.take_along_axis(distance, order, axis=-1).transpose(2, 0, 1)
        return _step(second - nearest - 0.03, 3 * pixel) * (0.6 + 0.4 * ((order[..., 0] * 7) % 10) / 9.0)
    if name == "a starry sky":
        stars: np.ndarray = (rng.random((height, width)) < 0.02).astype(np.float32)
        stars = cv2.GaussianBlur(stars * rng.uniform(0.5, 1.0, stars.shape).astype(np.float32), (0, 0), 0.6)
        return 2.2 * stars + 0.05 * (1 + _smooth_noise(rng, height, width, unit / 8, unit / 8))
    if name == "a gray checkerboard":
        return _step(np.sin(2 * np.pi * 3.0 * x) * np.sin(2 * np.pi * 3.0 * y), 0.4)
    if name in ("blue stripes", "orange stripes"):
        across = x if name == "blue stripes" else (x + y) / np.sqrt(2.0)
        return _step(np.sin(2 * np.pi * 4.0 * across), 0.5)
    row = np.floor(y * 5.0)
    along = (x * 5.0 + 0.5 * (row % 2)) % 1.0 - 0.5
    return _step(0.30 - np.hypot(along, (y * 5.0) % 1.0 - 0.5), 8 * pixel)


@lru_cache(maxsize=4 * len(BACKGROUNDS))
def background_canvas(name: str, height: int, width: int, margin: int) -> np.ndarray:
    """The named texture, float32 (height + 2 margin, width + 2 margin, 3) in [0, 1], with the frame in its middle."""
    unit = float(np.sqrt(height * width))
    rng = _named_rng("background", name)
    rows, columns = height + 2 * margin, width + 2 * margin
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    x, y = (x - (columns - 1) / 2) / unit, (y - (rows - 1) / 2) / unit
    weight = np.clip(_pattern(name, x, y, unit, rng), 0.0, 1.0)[..., None].astype(np.float32)
    first, second = np.asarray(BACKGROUNDS[name], np.float32)
    grain = rng.standard_normal((rows, columns, 1)) * 0.8 + rng.standard_normal((rows, columns, 3)) * 0.6
    canvas = np.clip(first + (second - first) * weight + GRAIN * grain.astype(np.float32), 0.0, 1.0)
    canvas.flags.writeable = False
    return canvas


@lru_cache(maxsize=1)
def compatible_colours() -> dict[str, frozenset[str]]:
    """For every background the object colours that stand out against it."""
    means = {name: background_canvas(name, 64, 64, 16).mean(axis=(0, 1)) for name in BACKGROUNDS}
    return {
        name: frozenset(c for c, rgb in COLOURS.items() if np.linalg.norm(mean - np.asarray(rgb)) >= 0.45)
        for name, mean in means.items()
    }


def _outline(shape: str) -> list[np.ndarray]:
    """Polygons (points, 2) of a shape of size 1 centred at the origin; the second one, if any, is a hole.

    Shapes are scaled to nearly equal areas (0.59 to 0.79 of size squared), so that none is too small to be seen.
    """
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if shape == "circle":
        return [0.5 * circle]
    if shape == "ring":
        return [0.53 * circle, 0.28 * circle]
    if shape == "square":
        return [0.42 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)]
    if shape == "triangle":
        return [np.array([[0.0, -0.58], [0.60, 0.46], [-0.60, 0.46]])]
    if shape == "star":
        corners = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 0.62, 0.34)
        return [np.stack([radius * np.cos(corners), radius * np.sin(corners) + 0.03], axis=1)]
    a, b = 0.19, 0.52  # half the width and half the length of a cross's arms
    points = [(-a, -b), (a, -b), (a, -a)]
    for _ in range(3):  # quarter turns
        points += [(-y, x) for x, y in points[-3:]]
    return [np.array(points)]


SPRITE_EXTENT = 1.4  # a sprite covers a square of this many object sizes


@lru_cache(maxsize=512)
def sprite(shape: str, resolution: int) -> np.ndarray:
    """An object's look in its own coordinates: float32 (n, n, 2) = (coverage 0..1, shading factor), n = resolution.

    The shading (light from the top left, a darker rim, grain) multiplies the object's colour; it is the same for
    every colour, which makes recolouring well defined.
    """
    supersample = 6
    fine = resolution * supersample
    canvas = np.zeros((fine, fine), np.uint8)
    for value, polygon in zip((255, 0), _outline(shape), strict=False):
        points = (polygon / SPRITE_EXTENT + 0.5) * fine
        cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], value)
    rim: np.ndarray = cv2.distanceTransform(canvas, cv2.DIST_L2, 3) / (fine / SPRITE_EXTENT)
    coverage = cv2.resize(canvas.astype(np.float32) / 255.0, (resolution, resolution), interpolation=cv2.INTER_AREA)
    rim = cv2.resize(rim, (resolution, resolution), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[0:resolution, 0:resolution].astype(np.float32) / resolution - 0.5
    grain = _named_rng("sprite", resolution).standard_normal((resolution, resolution)) * 1.2 * GRAIN
    shade = 0.90 - 0.22 * (x + y) + grain
    shade = shade * (0.60 + 0.40 * np.clip(rim / 0.06, 0.0, 1.0))
    result = np.stack([coverage, shade.astype(np.float32)], axis=-1)
    result.flags.writeable = False
    return result
