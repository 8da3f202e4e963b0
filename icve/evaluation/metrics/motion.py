"""Motion smoothness (VBench): how well every second frame is foretold by its neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from icve.editing.editors import checked_device
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.scripted import load_scripted
from icve.runtime.transfers import to_device

_SIDES = 16  # pictures are padded to multiples of so many pixels


class MotionSmoothness(Metric):
    """(255 - mean |odd frame - the one interpolated from its even neighbours|) / 255.

    Papers interpolate with AMT-S, whose code and weights are licensed for non-commercial use and are not part of this
    project: bring it as a TorchScript file, and the figure is ``motion_smoothness``. Without one, frames are predicted
    as the mean of their neighbours, which is called ``motion_smoothness_linear`` and not comparable with theirs.

    Args:
        interpolator: TorchScript file; called with two pictures, each (B, 3, H, W) float32 in [0, 1] of sides that 16
            divides (edges are repeated), it returns the one in the middle, of the same shape.
        device: for the interpolator; None is a GPU where there is one.
    """

    def __init__(self, interpolator: str | None = None, device: str | None = None) -> None:
        self._device = torch.device(checked_device(device)) if interpolator else None
        self._interpolator = load_scripted(interpolator, str(self._device)) if interpolator else None

    def reset(self, clip: ClipInfo) -> None:
        self._held: np.ndarray | None = None  # from the last even frame on
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        frames = edited if self._held is None else np.concatenate([self._held, edited])
        triples = (len(frames) - 1) // 2
        self._held = frames[2 * triples :]
        if not triples:
            return
        even, odd = frames[: 2 * triples + 1 : 2], frames[1 : 2 * triples : 2]
        for frame, predicted in zip(odd, self._between(even[:-1], even[1:]), strict=True):
            self._values.append(1 - cv2.norm(frame, predicted, cv2.NORM_L1) / frame.size / 255)

    def compute(self) -> Mapping[str, Figure]:
        name = "motion_smoothness" if self._interpolator is not None else "motion_smoothness_linear"
        return {name: Figure.mean(self._values)}

    def _between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The pictures in the middle, uint8 (n, H, W, 3), rounded down as VBench does."""
        if self._interpolator is None:
            return (first >> 1) + (second >> 1) + (first & second & 1)
        assert self._device is not None
        height, width = first.shape[1:3]
        (top, bottom), (left, right) = _padding(height), _padding(width)
        with torch.inference_mode():
            pictures = [
                torch.nn.functional.pad(_pixels(frames, self._device), (left, right, top, bottom), mode="replicate")
                for frames in (first, second)
            ]
            middle = self._interpolator(*pictures)
            if not isinstance(middle, Tensor) or middle.shape != pictures[0].shape:
                raise ValueError("The interpolator does not return pictures of the shape that it is given: script one.")
            if not middle.isfinite().all():
                raise ValueError(f"The interpolator gives no numbers for pictures of {height} × {width}: enlarge them.")
            middle = middle[..., top : top + height, left : left + width]
            return (middle * 255).clamp(0, 255).permute(0, 2, 3, 1).byte().cpu().numpy()


def _pixels(frames: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(frames)), device).permute(0, 3, 1, 2) / 255.0


def _padding(side: int) -> tuple[int, int]:
    missing = -side % _SIDES
    return missing // 2, missing - missing // 2
