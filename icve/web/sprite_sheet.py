"""Clips as one picture that a page can hold and play."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def sprite_sheet(clips: Sequence[np.ndarray], quality: int = 85) -> str:
    """Data URL of a WebP image: one column per clip, one row per frame. Clips are uint8 (F,H,W,3) of one shape."""
    sheet = np.concatenate([clip.reshape(-1, *clip.shape[2:]) for clip in clips], axis=1)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
