"""The part of a picture that is compared: all of it, inside a mask, or outside, where nothing should change."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from icve.runtime.transfers import to_device

Reference = Literal["source", "target"]
Region = Literal["frame", "inside", "outside"]


def inner_region(mask_FHW: np.ndarray, region: Region, margin: int) -> np.ndarray:
    """Pixels (F, H, W) of the region whose surroundings of ``margin`` pixels to every side belong to it, too.

    So no pixel of the other side has a part in what is averaged. The picture's edge is no other side.
    """
    inside = mask_FHW if region == "inside" else ~mask_FHW
    if not margin:
        return inside
    window = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return np.stack([cv2.erode(frame.view(np.uint8), window) for frame in np.ascontiguousarray(inside)]).astype(bool)


def mean_within(values_HW: Tensor, region_HW: np.ndarray) -> float:
    """Mean of a map's values in a region that is not empty."""
    if region_HW.all():
        return float(values_HW.mean())
    return float(values_HW[to_device(torch.from_numpy(region_HW), values_HW.device)].mean())
