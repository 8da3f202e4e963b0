"""Pictures that an edit takes looks from: of any size, brought whole to the size of the clip."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from icve.data.media.still_picture import read_picture

GREY = 128  # around the picture, and behind what of it is transparent


def letterbox(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 scaled to fit into ``size`` (height, width), with grey around: nothing is cut off."""
    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, min(most, round(n * scale))) for n, most in zip(picture.shape, size, strict=False))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    out = np.full((*size, 3), GREY, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    scaled = cv2.resize(picture, (width, height), interpolation=how) if scale != 1 else picture
    out[top : top + height, left : left + width] = scaled
    return out


def read_reference(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """The reference of an edit at ``size`` (height, width), uint8 (1, *size, 3): a clip of one frame.

    A transparent margin is cut off, so that what is shown fills the picture wherever it lay in it.

    Raises:
        VideoError: it cannot be read.
    """
    return letterbox(read_picture(path, behind=GREY, cropped=True), size)[None]
