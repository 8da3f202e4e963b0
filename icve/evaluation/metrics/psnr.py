"""Peak signal-to-noise ratio, over the frame, inside the edited region, or outside it, where nothing should change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.regions import Reference, Region

PSNR_CAP = 60.0
"""dB. Rounding to 8 bits alone costs 1/12 of a squared level (58.9 dB): nothing above is a difference worth averaging,
and without a cap one edit with identical pixels would make every mean infinite."""


class Psnr(Metric):
    """PSNR of an edited video in dB, of all its pixels together; at most :data:`PSNR_CAP`.

    Only pixels of the region count. (FiVE-Bench blackens the others in both videos instead, which makes its figure
    higher by 10·log10(all pixels / pixels of the region).) The figure is called ``psnr_REFERENCE_REGION``; the mean of
    its frames' decibels, which many papers report and which differs, ``psnr_frames_REFERENCE_REGION``.

    Args:
        reference: what the edit is compared with: its source, or the true target.
        region: "frame"; "inside" the mask; or "outside" it.
    """

    def __init__(
        self,
        reference: Reference = "source",
        region: Region = "outside",
    ) -> None:
        self.reference, self.region = reference, region
        self.needs = ("edited", reference, *(() if region == "frame" else ("mask",)))

    def reset(self, clip: ClipInfo) -> None:
        self._error, self._pixels = 0.0, 0
        self._frames: list[float] = []

    def update(self, edited: np.ndarray, mask: np.ndarray | None = None, **reference: np.ndarray) -> None:
        for number, (frame, other) in enumerate(zip(edited, reference[self.reference], strict=True)):
            error = squared_error(frame, other)
            if mask is not None:
                error = error[mask[number] == (self.region == "inside")]
            if error.size:
                total = float(error.sum(dtype=np.float64))
                self._error, self._pixels = self._error + total, self._pixels + error.size
                self._frames.append(decibels(total / error.size))

    def compute(self) -> Mapping[str, float | Figure | None]:
        name = f"{self.reference}_{self.region}"
        whole = decibels(self._error / self._pixels) if self._pixels else None
        return {f"psnr_{name}": whole, f"psnr_frames_{name}": Figure.mean(self._frames)}


def decibels(error: float, most: float = PSNR_CAP) -> float:
    """PSNR of a mean squared error of 8-bit levels, at most ``most``."""
    return most if error == 0.0 else min(most, 10.0 * math.log10(255.0**2 / error))


def psnr(result: np.ndarray, reference: np.ndarray, region: np.ndarray | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB of two uint8 clips (F,H,W,3), at most :data:`PSNR_CAP`.

    ``region`` (F,H,W) bool limits it to those pixels of all frames together; None when the region is empty, because no
    pixel is neither a good nor a bad one.
    """
    error = squared_error(result, reference)
    if region is not None:
        if not region.any():
            return None
        error = error[region]
    return decibels(float(error.mean(dtype=np.float64)))


def squared_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared differences of two uint8 clips, float32."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return difference * difference
