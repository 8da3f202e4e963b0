"""Masks of the region to change: packed bits in a compressed npz, pictures, videos.

True, or white, marks what is to change; what is black stays as it is.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from icve.data.media.still_picture import read_picture
from icve.data.media.video import VideoError, probe, read_frames
from icve.runtime.atomic import whole_file
from icve.runtime.storage.files import open_file
from icve.runtime.storage.remote_path import RemoteError, as_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def save_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a bool mask (F, H, W), whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, bits=np.packbits(mask), shape=np.asarray(mask.shape, np.int32))


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask written by ``save_mask``: bool (F, H, W), True where the edit changes the picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a mask.
    """
    mask = PackedMask(path)
    return mask.frames(0, mask.shape[0])


class PackedMask:
    """A mask written by ``save_mask``, of which frames are unpacked when they are asked for: it takes an eighth of the
    memory. Raises as :func:`load_mask`.

    Attributes:
        shape: (F, H, W).
    """

    def __init__(self, path: str | Path) -> None:
        path = as_path(path)
        try:
            file = open_file(path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFoundError(
                f"There is no mask file {path}; check mask_path in the manifest and its root."
            ) from error
        try:
            with file, np.load(file, allow_pickle=False) as data:
                self.shape = tuple(int(n) for n in data["shape"])
                self._bits = data["bits"]
                if len(self.shape) != 3 or 8 * self._bits.size < np.prod(self.shape):
                    raise ValueError(f"Its {self._bits.size} bytes are no mask of {self.shape}.")
        except RemoteError:
            raise
        except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not an edit mask as icve writes them; write it again.") from error

    def frames(self, start: int, end: int) -> np.ndarray:
        """Frames of the mask, bool (end - start, H, W)."""
        pixels = self.shape[1] * self.shape[2]
        first = start * pixels // 8
        bits = np.unpackbits(self._bits[first : -(-end * pixels // 8)])
        return bits[start * pixels - 8 * first :][: (end - start) * pixels].reshape(-1, *self.shape[1:]).astype(bool)


def read_mask(path: str | Path, shown: np.ndarray) -> np.ndarray:
    """The mask of some frames of a clip, from any kind of file.

    Args:
        path: npz of `save_mask`; a picture, which holds for all frames; or a video, frame for frame. Of the latter two,
            grey of at least half marks the region to change.
        shown: (F,) frames, counted from the clip's start.

    Returns:
        bool (F, H, W) of the file's own size, True in the region to change.

    Raises:
        ValueError, OSError: it is no mask, or has too few frames.
    """
    path = as_path(path)
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        mask_HW = white(read_picture(path, behind=0))
        return np.broadcast_to(mask_HW, (len(shown), *mask_HW.shape))
    known = load_mask(path) if suffix == ".npz" else None
    frames = probe(path).frames if known is None else len(known)
    if frames <= shown.max():
        raise VideoError(path, f"it masks {frames} frames, fewer than {int(shown.max()) + 1}.")
    return known[shown] if known is not None else white(read_frames(path, shown))


def white(pictures: np.ndarray) -> np.ndarray:
    """Where pictures (..., 3) are at least half grey."""
    return pictures.mean(axis=-1) >= 127.5
