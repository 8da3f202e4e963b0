"""How the camera's view moved from one picture to another of the same scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

_WINDOW = 15  # pixels over which two pictures are compared
_MAX_TURN = 6.0  # degrees of roll beyond which no direction is named
_TEXTURE = 4.0  # grey levels of standard deviation below which a place shows nothing to compare


@dataclass(frozen=True)
class View:
    """A similarity transform from the source picture to the target picture, and how far it can be believed.

    Attributes:
        matrix: (2, 3) float64, source pixel (x, y, 1) → target pixel.
        agreement: share (0..1) of the textured places, of those in both views, whose texture is the same after the
            transform. Texture is compared by correlation, so light and contrast do not matter.
        still: the same share without any transform.
    """

    matrix: np.ndarray
    agreement: float
    still: float

    @property
    def scale(self) -> float:
        """How much larger things are in the target: above 1 the camera came closer."""
        return float(math.hypot(*self.matrix[:, 0]))

    @property
    def turn(self) -> float:
        """Rotation in degrees."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))

    def shift(self, shape: tuple[int, int]) -> tuple[float, float]:
        """How far the picture's centre moved (right, down), as fractions of a picture of ``shape`` (height, width)."""
        height, width = shape
        x, y = self.matrix @ np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
        return (x - (width - 1) / 2) / width, (y - (height - 1) / 2) / height


@dataclass(frozen=True)
class CameraMove:
    """What a camera did: ``right`` and ``up`` as fractions of the picture's width and height, and how much larger
    things became. ``zooms`` where that is what one sees most.
    """

    right: float
    up: float
    scale: float
    zooms: bool


class Described:
    """A picture (H, W, 3) uint8 RGB, some hundred pixels wide, as ``grey`` (H, W) uint8 and by its features."""

    def __init__(self, picture: np.ndarray) -> None:
        self.grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """SIFT's points (N, 2) and descriptors (N, 128), float32; found when first asked for, since that takes long."""
        points, descriptors = _sift().detectAndCompute(self.grey, None)
        if descriptors is None:
            return np.empty((0, 2), np.float32), np.empty((0, 128), np.float32)
        return np.array([point.pt for point in points], np.float32), descriptors


def camera_move(
    views: Sequence[View | None], shape: tuple[int, int], min_shift: float, min_zoom: float, min_agreement: float
) -> CameraMove | str | None:
    """What the camera did between two clips.

    Args:
        views: of several pairs of their frames; most must be known, and all that are must tell the same.
        shape: of the pictures, (height, width).
        min_shift, min_zoom, min_agreement: see ``MeasuredAnnotator``.

    Returns:
        None for a camera that stayed (or moved less than the thresholds), a reason where that cannot be known.
    """
    known = [view for view in views if view and view.agreement >= min_agreement and abs(view.turn) <= _MAX_TURN]
    if 2 * len(known) <= len(views):
        return f"{len(views) - len(known)} of {len(views)} views of the scene have too little in common"
    shifts = np.array([view.shift(shape) for view in known])
    zooms = np.array([np.log(view.scale) for view in known])
    shift, zoom = np.median(shifts, axis=0), float(np.median(zooms))
    main = int(np.abs(shift).argmax())
    pans, zoomed = abs(shift[main]) >= min_shift, abs(zoom) >= np.log(min_zoom)
    if not pans and not zoomed:
        return None
    measured = f"shift {shift[0]:+.2f} {shift[1]:+.2f}, scale {np.exp(zoom):.2f}"
    if any(view.agreement < view.still + 0.1 for view in known):
        return f"something moved rather than the camera ({measured})"
    # A zoom moves the edges of the picture by half of what it adds to its width.
    first = zoomed and (not pans or abs(np.expm1(zoom)) / 2 >= abs(shift[main]))
    values, least = (zooms, np.log(min_zoom) / 2) if first else (shifts[:, main], min_shift / 2)
    if not ((values >= least).all() or (values <= -least).all()):
        return f"the camera does not move alike throughout ({measured})"
    # What is seen moves the other way.
    return CameraMove(right=float(-shift[0]), up=float(shift[1]), scale=float(np.exp(zoom)), zooms=bool(first))


def find_view(source: Described, target: Described, min_inliers: int = 16) -> View | None:
    """The similarity that carries most of the source picture to the target picture.

    A view that stayed is known by its texture. For others, SIFT features are matched both ways, RANSAC finds what most
    of them do, and a dense check that does not depend on the features says how far that holds.

    Args:
        source, target: pictures of one size.
        min_inliers: matches that must agree, in several parts of the picture.

    Returns:
        None where too little matches.
    """
    if is_still(source.grey, target.grey):
        return View(np.eye(2, 3), agreement=1.0, still=1.0)
    at_source, at_target = _matches(source, target)
    if len(at_source) < min_inliers:
        return None
    width = source.grey.shape[1]
    matrix, inliers = cv2.estimateAffinePartial2D(
        at_source, at_target, method=cv2.RANSAC, ransacReprojThreshold=width / 160, maxIters=4000, confidence=0.999
    )
    if matrix is None:
        return None
    kept = at_source[inliers[:, 0] > 0]
    if len(kept) < min_inliers or _spread(kept, source.grey.shape) < 5:
        return None
    warped, seen = warp(source.grey, matrix)
    return View(matrix, agreement(warped, target.grey, seen), agreement(source.grey, target.grey))


def is_still(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two grey pictures (H, W) uint8 show one view: by what has texture, and by all of it where little has."""
    same, textured = correlation(a, b)
    if textured.mean() > 0.1:
        return bool((same[textured] > 0.8).mean() > 0.7)
    difference = a.astype(np.float32) - b
    return bool(np.median(np.abs(difference - np.median(difference))) < 3)


def warp(picture: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W[, 3]) uint8 carried through a (2, 3) transform, and where it shows anything, (H, W) bool."""
    size = picture.shape[1::-1]
    warped = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.warpAffine(np.full(picture.shape[:2], 255, np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    return warped, cv2.erode(seen, np.ones((3, 3), np.uint8), borderValue=255) > 0


def correlation(a: np.ndarray, b: np.ndarray, window: int = _WINDOW) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of two grey pictures (H, W) around each pixel, (H, W) in -1..1, and where either has texture."""
    a, b = a.astype(np.float32), b.astype(np.float32)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(x, -1, (window, window), borderType=cv2.BORDER_REFLECT)

    mean_a, mean_b = mean(a), mean(b)
    var_a = np.maximum(mean(a * a) - mean_a**2, 0)
    var_b = np.maximum(mean(b * b) - mean_b**2, 0)
    joint = mean(a * b) - mean_a * mean_b
    return joint / np.sqrt(var_a * var_b + 1.0), np.maximum(var_a, var_b) > _TEXTURE**2


def agreement(a: np.ndarray, b: np.ndarray, seen: np.ndarray | None = None) -> float:
    """Share (0..1) of the textured pixels, of those ``seen``, around which two grey pictures (H, W) correlate."""
    same, textured = correlation(a, b)
    counted = textured if seen is None else textured & seen
    return float((same[counted] > 0.5).mean()) if counted.any() else 0.0


def _matches(source: Described, target: Described) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) of both pictures whose features are each other's clear nearest neighbours."""
    (points, ours), (other_points, theirs) = source.features, target.features
    if min(len(points), len(other_points)) < 8:
        return np.empty((0, 2), np.float32), np.empty((0, 2), np.float32)
    squares = (ours**2).sum(1)[:, None] + (theirs**2).sum(1)
    distances = np.maximum(squares - 2 * ours @ theirs.T, 0)
    nearest = distances.argmin(1)
    two = np.partition(distances, 1, axis=1)[:, :2]
    mutual = distances.argmin(0)[nearest] == np.arange(len(nearest))
    clear = mutual & (two[:, 0] < 0.8**2 * two[:, 1])
    return points[clear], other_points[nearest[clear]]


@cache
def _sift() -> cv2.SIFT:
    return cv2.SIFT.create(nfeatures=1200, contrastThreshold=0.01)


def _spread(points: np.ndarray, shape: tuple[int, int]) -> int:
    """How many of 4 × 6 parts of the picture hold some of the points."""
    cells = np.floor(points / np.array(shape[::-1]) * (6, 4)).clip(0, (5, 3)).astype(int)
    counts = np.bincount(cells[:, 1] * 6 + cells[:, 0], minlength=24)
    return int((counts >= 2).sum())
