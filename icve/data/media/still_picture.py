"""Pictures that are files of their own (PNG, JPEG, WebP): videos of one frame, to everything that reads videos.

Pictures are turned as their EXIF data says, brought to sRGB where they have another RGB profile, and to 8 bits a
channel; what is transparent lies on white, or another grey. CMYK is refused: its colours depend on the printer that
they were made for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageCms, ImageOps

from icve.data.media.video_stream import VideoError
from icve.runtime.atomic import whole_file
from icve.runtime.storage.files import open_file
from icve.runtime.storage.remote_path import RemoteError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
_FORMATS = ("PNG", "JPEG", "WEBP")
_OTHERS = ("BMP", "TIFF", "GIF")  # of masks and references, which are never taken for videos
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "I;16N"))
_ORIENTATION, _LIES = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap width and height


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a file is read as a single picture: by its suffix, unless it is a PNG of many frames, a video."""
    if Path(path).suffix.lower() not in SUFFIXES:
        return False
    try:
        with open_file(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.format != "PNG" or not getattr(image, "is_animated", False)
    except RemoteError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True  # reading it says why it is none


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) as shown, from the picture's header. Raises VideoError where it cannot be read."""
    with _opened(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in _LIES
        return (image.height, image.width) if turned else (image.width, image.height)


def read_picture(path: str | os.PathLike, behind: int = 255, cropped: bool = False) -> np.ndarray:
    """The picture as shown, (H, W, 3) uint8 RGB, what is transparent over this level of grey; ``cropped`` to what is
    not fully transparent, unless all of it is.

    Raises VideoError where it cannot be read.
    """
    with _opened(path, (*_FORMATS, *_OTHERS)) as image:
        image.load()
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # of 16 bits, whatever the type that holds them
            grey_HW = np.asarray(image).astype(np.int64) // 257
            return np.repeat(grey_HW.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = image.crop(image.getchannel("A").getbbox() if cropped else None)
            image = Image.alpha_composite(Image.new("RGBA", image.size, (behind,) * 3), image)
        return np.array(_srgb(image.convert("RGB"), profile))


class PictureWriter:
    """Write a PNG, whole or not at all: a :class:`icve.data.media.video.VideoWriter` of one frame.

    Args:
        path: of the file.
    """

    notes: ClassVar[Sequence[str]] = ()

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._picture: np.ndarray | None = None

    def __enter__(self) -> PictureWriter:
        return self

    def write(self, frames: np.ndarray, times: np.ndarray | None = None) -> None:
        """Take the one frame, (1, H, W, 3) or with alpha (1, H, W, 4), uint8. Raises ValueError for more."""
        if len(frames) != 1 or self._picture is not None:
            raise ValueError("A picture has one frame.")
        self._picture = frames[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._picture is not None:
            with whole_file(self.path) as temporary:
                Image.fromarray(self._picture).save(temporary, "PNG")


@contextmanager
def _opened(path: str | os.PathLike, formats: tuple[str, ...] = _FORMATS) -> Iterator[Image.Image]:
    """An open picture; what goes wrong with it inside, too, becomes a VideoError."""
    try:
        with open_file(path) as file, Image.open(file, formats=formats) as image:
            if getattr(image, "is_animated", False):
                raise VideoError(path, "it is an animation in a format for pictures: save it as a video.")
            if image.mode not in _MODES:
                raise VideoError(path, f"its colours are {image.mode}: save it as RGB in an image editor.")
            yield image
    except (VideoError, RemoteError):
        raise
    except FileNotFoundError as error:
        raise VideoError(path, "there is no such picture: give a PNG or JPEG file that exists.") from error
    except Image.UnidentifiedImageError as error:
        raise VideoError(path, "it is no PNG, JPEG or WebP picture, whatever its name says.") from error
    except Image.DecompressionBombError as error:
        raise VideoError(
            path, "it has more pixels than are read of a picture (178 million): make it smaller."
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(path, f"it cannot be read as a picture ({reason}).") from error


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB picture brought to sRGB from its own profile; one without, or whose profile is none of RGB, is sRGB."""
    if not profile:
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if own.profile.xcolor_space.strip() != "RGB" or "sRGB" in ImageCms.getProfileDescription(own):
            return image
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged: shown without it, as browsers do
        return image
    return image if converted is None else converted
