"""Pictures as models take them: no larger than useful, and as data URLs."""

from __future__ import annotations

import base64
from typing import Literal

import cv2
import numpy as np

PictureFormat = Literal["jpeg", "png"]


def fit(picture: np.ndarray, longest_side: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 scaled down until its longer side is at most ``longest_side`` pixels."""
    height, width = picture.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def data_url(picture: np.ndarray, format: PictureFormat = "jpeg", jpeg_quality: int = 90) -> str:
    """A picture (H, W, 3) uint8 RGB as ``data:image/...;base64,...``; PNG is lossless, JPEG a tenth of its size."""
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if format == "jpeg" else []
    written, content = cv2.imencode(f".{format}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not written:
        raise ValueError(f"A picture of {picture.shape} cannot be written as {format}.")
    return f"data:image/{format};base64,{base64.b64encode(content.tobytes()).decode()}"
