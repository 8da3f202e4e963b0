"""Errors of alpha mattes: MAD, MSE, Grad, Conn and dtSSD, as video matting reports them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import cv2
import numpy as np

from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric

_THRESHOLDS = np.arange(0, 1.1, 0.1)


class MatteErrors(Metric):
    """``matte_mad`` and ``matte_mse`` (mean absolute and squared error × 10³), ``matte_grad`` and ``matte_conn`` (sums
    of the errors of gradient and connectivity / 10³), ``matte_dtssd`` (error of the change from frame to frame × 10²);
    alpha in [0, 1], lower is better.

    Grad and Conn are sums: they grow with the number of pixels. Every figure has the values of its frames, of which the
    published tables are means over frame numbers, with 0 as dtSSD of the first frame (a suite's ``by_frame``). Its mean
    here is over pairs of frames.

    Args:
        size: (H, W) that mattes are scaled to first, such as [288, 512] of the usual tables; None compares them in the
            edited video's size.
    """

    needs = ("alpha", "target_alpha")
    lower_is_better = ("matte_",)

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self._size = size

    def reset(self, clip: ClipInfo) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._values: dict[str, list[float]] = {name: [] for name in ("mad", "mse", "grad", "conn", "dtssd")}

    def update(self, alpha: np.ndarray, target_alpha: np.ndarray) -> None:
        for pair in zip(alpha, target_alpha, strict=True):
            found, true = (_scaled(matte, self._size).astype(np.float32) / 255 for matte in pair)
            error = found - true
            self._values["mad"].append(float(np.abs(error).mean(dtype=np.float64)) * 1e3)
            self._values["mse"].append(float(np.square(error).mean(dtype=np.float64)) * 1e3)
            self._values["grad"].append(gradient_error(found, true))
            self._values["conn"].append(connectivity_error(found, true))
            change = 0.0
            if self._last is not None:
                difference = (found - self._last[0]) - (true - self._last[1])
                change = math.sqrt(np.square(difference).mean(dtype=np.float64)) * 1e2
            self._values["dtssd"].append(change)
            self._last = found, true

    def compute(self) -> Mapping[str, Figure]:
        figures = {f"matte_{name}": Figure.mean(values, by_frame=True) for name, values in self._values.items()}
        changes = self._values["dtssd"]
        figures["matte_dtssd"] = Figure.mean(changes[1:])._replace(frames=tuple(changes))
        return figures


def gradient_kernel(sigma: float = 1.4) -> np.ndarray:
    """Derivative of a Gaussian along x, (9, 9) for σ 1.4: as large as values of at least 0.01 are, of L2 norm 1."""
    along, across = _gradient_taps(sigma)
    return np.outer(across, along)


def gradient_error(found: np.ndarray, true: np.ndarray) -> float:
    """Sum of the squared differences of two mattes' (H, W) gradient magnitudes, / 10³. Both are stretched to [0, 1]
    first; a constant one is 0."""
    return float(np.square(_gradient(found) - _gradient(true)).sum()) / 1e3


def connectivity_error(found: np.ndarray, true: np.ndarray) -> float:
    """Sum of the differences in connectivity of two mattes (H, W) float32, / 10³.

    A pixel is connected up to the last of the levels 0, 0.1 … 1 at which it lies in the largest 4-connected region
    where both mattes reach the level; what a matte has above that counts from 0.15 on.
    """
    connected = np.full(found.shape, -1.0)
    for below, level in itertools.pairwise(_THRESHOLDS):
        both = ((found >= level) & (true >= level)).astype(np.uint8)
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        areas = statistics[1:, cv2.CC_STAT_AREA]
        largest = labels == 1 + areas.argmax() if len(areas) else np.zeros(found.shape, bool)
        connected[(connected == -1) & ~largest] = below
    connected[connected == -1] = 1
    above = [matte - connected for matte in (found, true)]
    first, second = (1 - distance * (distance >= 0.15) for distance in above)
    return float(np.abs(first - second).sum()) / 1e3


def _gradient_taps(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * 0.01)))
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    bell = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    slope = -x * bell / sigma**2
    return slope / np.linalg.norm(slope), bell / np.linalg.norm(bell)


def _gradient(matte: np.ndarray) -> np.ndarray:
    low, high = float(matte.min()), float(matte.max())
    stretched = (matte.astype(np.float64) - low) / (high - low) if high > low else np.zeros(matte.shape)
    along, across = _gradient_taps(1.4)
    slopes = [
        cv2.sepFilter2D(stretched, -1, *taps, borderType=cv2.BORDER_REPLICATE)
        for taps in ((along, across), (across, along))
    ]
    return np.hypot(*slopes)


def _scaled(matte: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or matte.shape == tuple(size):
        return matte
    return cv2.resize(matte, tuple(size)[::-1], interpolation=cv2.INTER_AREA)
