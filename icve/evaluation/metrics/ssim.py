"""Structural similarity (Wang et al., 2004): over the frame, inside the edited region, or outside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from icve.editing.editors import checked_device
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.regions import Reference, Region, inner_region, mean_within
from icve.runtime.transfers import to_device

RADIUS = 5
"""Pixels that the Gaussian window (σ 1.5, 11 × 11) reaches to each side."""


class Ssim(Metric):
    """Mean over frames of SSIM in a region, ``ssim_REFERENCE_REGION``; at most 1.

    A window counts where it lies in the region and in the picture with all of its 11 × 11 pixels (scikit-image's
    Gaussian SSIM, with the mask eroded by 5 pixels).

    Args:
        reference: what the edit is compared with: its source, or the true target.
        region: "frame"; "inside" the mask; or "outside" it.
        border: "cut"; or "counted", windows over the mirrored border and over the mask's border too, which is
            torchmetrics' value of a frame, and gives ``ssim_counted_REFERENCE_REGION``.
        device: None is a GPU where there is one.
    """

    def __init__(
        self,
        reference: Reference = "source",
        region: Region = "outside",
        border: Literal["cut", "counted"] = "cut",
        device: str | None = None,
    ) -> None:
        self._reference, self._region, self._border = reference, region, border
        self._device = torch.device(checked_device(device))
        self.needs = ("edited", reference, *(() if region == "frame" else ("mask",)))

    def reset(self, clip: ClipInfo) -> None:
        if min(clip.size) <= 2 * RADIUS:
            raise ValueError(f"Its picture of {clip.size[0]} × {clip.size[1]} is smaller than the window of 11 × 11.")
        self._values: list[float] = []

    def update(self, edited: np.ndarray, mask: np.ndarray | None = None, **reference: np.ndarray) -> None:
        cut = self._border == "cut"
        if mask is None:
            regions = np.ones(edited.shape[:3], bool)
        else:
            regions = inner_region(mask, self._region, RADIUS if cut else 0)
        regions = regions[:, RADIUS:-RADIUS, RADIUS:-RADIUS] if cut else regions
        for first, second, region in zip(edited, reference[self._reference], regions, strict=True):
            if region.any():  # frame by frame: what it takes on the way is some times as large as the pictures
                found = ssim_map(first, second, padding="none" if cut else "reflect", device=self._device)
                self._values.append(mean_within(found, region))

    def compute(self) -> Mapping[str, Figure]:
        kind = "ssim" if self._border == "cut" else "ssim_counted"
        return {f"{kind}_{self._reference}_{self._region}": Figure.mean(self._values)}


def ssim_map(
    first: np.ndarray,
    second: np.ndarray,
    window: Literal["gaussian", "uniform"] = "gaussian",
    padding: Literal["none", "reflect", "symmetric"] = "none",
    device: torch.device | None = None,
) -> Tensor:
    """SSIM of every window of two pictures, the mean of their channels.

    Args:
        first, second: (H, W, C) uint8.
        window: Gaussian, 11 × 11, σ 1.5; or uniform, 7 × 7, with the covariance of a sample (scikit-image's default).
        padding: what lies beyond the picture: nothing, so that the map is smaller by the window's radius on each side;
            or the picture mirrored, without ("reflect") or with ("symmetric") its outermost pixel twice.
        device: that it is computed on.

    Returns:
        (H, W) or smaller, float32.
    """
    if window == "gaussian":
        taps = torch.exp(-(torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64) ** 2) / (2 * 1.5**2))
        taps, unbiased = (taps / taps.sum()).float().to(device), 1.0
    else:
        taps, unbiased = torch.full((7,), 1 / 7, device=device), 49 / 48
    pictures = torch.from_numpy(np.stack([first, second]))
    x, y = to_device(pictures, device or "cpu").permute(0, 3, 1, 2).float().unbind(0)
    # Variances do not change when a grey is taken away, and are more exact with smaller numbers.
    x, y = x / 255 - 0.5, y / 255 - 0.5
    planes = torch.cat([x, y, x * x + y * y, x * y])[:, None]
    radius = len(taps) // 2
    if padding != "none":
        for side in (2, 3):
            planes = planes.index_select(side, _mirrored(planes.shape[side], radius, padding == "symmetric", device))
    planes = torch.nn.functional.conv2d(planes, taps.view(1, 1, -1, 1))
    planes = torch.nn.functional.conv2d(planes, taps.view(1, 1, 1, -1))
    mean_x, mean_y, squares, product = planes[:, 0].chunk(4)
    variances = (squares - mean_x * mean_x - mean_y * mean_y) * unbiased
    covariance = (product - mean_x * mean_y) * unbiased
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x * mean_x + mean_y * mean_y + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean(0)


def _mirrored(side: int, radius: int, twice: bool, device: torch.device | None) -> Tensor:
    within = torch.arange(side, device=device)
    off = 0 if twice else 1
    before, after = within[off : radius + off].flip(0), within[side - radius - off : side - off].flip(0)
    return torch.cat([before, within, after])
