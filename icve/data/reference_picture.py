"""Pictures that an edit takes looks from: of any size, brought whole to the size of the clip."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from icve.runtime.storage.files import open_file
from icve.runtime.storage.remote_path import RemoteError

GREY = 128  # around the picture, and behind what of it is transparent


class PictureError(ValueError):
    """A picture that cannot be used, in one sentence."""


def read_picture(path: str | Path, behind: int = GREY, cropped: bool = False) -> np.ndarray:
    """A still picture (H, W, 3) uint8 RGB, upright, what is transparent over this level of grey.

    Args:
        cropped: to what is not fully transparent, unless all of it is.

    Raises:
        PictureError: there is none, or it cannot be read.
    """
    try:
        with open_file(path) as file, Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise PictureError(f"There is no picture {path}: give a PNG or JPEG file that exists.") from None
    except RemoteError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} cannot be read as a picture: give a PNG or JPEG file.") from error
    if cropped:
        picture = picture.crop(picture.getchannel("A").getbbox())
    ground = Image.new("RGBA", picture.size, (behind, behind, behind, 255))
    return np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))


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
        PictureError: as `read_picture`.
    """
    return letterbox(read_picture(path, cropped=True), size)[None]
