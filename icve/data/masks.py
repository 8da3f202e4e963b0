"""Edit masks on disk: packed bits in a compressed npz, read without pickle."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from icve.runtime.atomic import whole_file
from icve.runtime.storage.files import open_file
from icve.runtime.storage.remote_path import RemoteError, as_path


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
    path = as_path(path)
    try:
        file = open_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(
            f"There is no mask file {path}; check mask_path in the manifest and its root."
        ) from error
    try:
        with file, np.load(file, allow_pickle=False) as data:
            shape = tuple(int(n) for n in data["shape"])
            return np.unpackbits(data["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    except RemoteError:
        raise
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an edit mask as icve writes them; write it again.") from error
