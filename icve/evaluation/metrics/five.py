"""Preservation as FiVE-Bench has it (``metrics_calculator.py``), for comparison with its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from icve.evaluation.metrics.lpips import perceptual_distance
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.psnr import decibels, squared_error
from icve.evaluation.metrics.ssim import ssim_map

_MOST = 100.0  # dB, of frames that are equal: FiVE's mean would be infinite


class FivePreservation(Metric):
    """``five_psnr`` (dB), ``five_ssim``, ``five_mse`` (of pixels in [0, 1]) and ``five_lpips``: means over every eighth
    frame, of pictures that are black inside the mask.

    The black counts as agreement: PSNR is too high by 10·log10(all pixels / preserved ones), and figures of different
    masks do not compare. :class:`icve.evaluation.metrics.psnr.Psnr` and its neighbours do not have this fault. The
    result is resized to the source by PIL (bicubic). FiVE's tables show MSE × 10⁴ and LPIPS × 1000.

    Args:
        backbone: file with torchvision's weights of SqueezeNet 1.1, for ``five_lpips``, which is None without it.
        heads, device: as of :class:`icve.evaluation.metrics.lpips.Lpips`.
        every: which frames count: the first of so many.
    """

    needs = ("edited", "source_as_stored", "mask_as_stored")
    lower_is_better = ("five_mse", "five_lpips")

    def __init__(
        self,
        backbone: str | None = None,
        heads: str | None = None,
        every: int = 8,
        device: str | None = None,
    ) -> None:
        self._distance = None if backbone is None else perceptual_distance(backbone, "squeeze", heads, device)
        self._every = every

    def reset(self, clip: ClipInfo) -> None:
        self._next = 0
        self._values: dict[Literal["psnr", "ssim", "mse", "lpips"], list[float]]
        self._values = {"psnr": [], "ssim": [], "mse": [], "lpips": []}

    def update(self, edited: np.ndarray, source_as_stored: np.ndarray, mask_as_stored: np.ndarray) -> None:
        for frame, source, mask in zip(edited, source_as_stored, mask_as_stored, strict=True):
            if self._next % self._every == 0:
                self._add(frame, source, mask)
            self._next += 1

    def compute(self) -> Mapping[str, Figure]:
        return {f"five_{name}": Figure.mean(values) for name, values in self._values.items()}

    def _add(self, frame: np.ndarray, source: np.ndarray, mask: np.ndarray) -> None:
        height, width = source.shape[:2]
        if frame.shape != source.shape:
            frame = np.asarray(Image.fromarray(frame).resize((width, height)))
        if mask.shape != (height, width):
            mask = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
        frame, source = (picture * ~mask[..., None] for picture in (frame, source))
        error = float(squared_error(frame, source).mean(dtype=np.float64))
        self._values["mse"].append(error / 255**2)
        self._values["psnr"].append(decibels(error, _MOST))
        self._values["ssim"].append(float(ssim_map(frame, source, padding="reflect").mean()))
        if self._distance is not None:
            self._values["lpips"].append(self._distance(frame, source))
