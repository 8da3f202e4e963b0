"""Folders of PNG frames: ``000000.png``, ``000001.png`` … and nothing else."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from icve.data.media.media_paths import media_path
from icve.data.media.video_stream import VideoError
from icve.runtime.atomic import remove_folder

_NAME = re.compile(r"\d{6,}\.png")


def frame_pattern(folder: Path) -> str:
    """What FFmpeg takes for the names of a folder's frames."""
    return media_path(folder).replace("%", "%%") + "/%06d.png"


def refuse_other_files(folder: Path) -> None:
    """Raise FileExistsError where a folder is to give way to new frames, but is none or holds more than frames."""
    if folder.exists() and not (folder.is_dir() and all(_NAME.fullmatch(file.name) for file in folder.iterdir())):
        raise FileExistsError(f"'{folder}' is not a folder of frames alone: move it away.")


def remove_frames(folder: Path) -> None:
    """Remove a folder of frames, if it is there; one that holds anything else stays."""
    try:
        refuse_other_files(folder)
    except FileExistsError:
        return
    remove_folder(folder)


def count_png_frames(folder: Path) -> int:
    """Number of frames that :func:`iterate_png_frames` gives, without reading them."""
    return next(number for number in itertools.count() if not (folder / f"{number:06d}.png").exists())


def iterate_png_frames(folder: Path, count: int | None = None) -> Iterator[np.ndarray]:
    """The frames of a folder, in order.

    Args:
        folder: of frames.
        count: of frames, from the first on; None is all.

    Yields:
        (H, W, 3) uint8 RGB or (H, W, 4) uint8 RGB and alpha.

    Raises:
        VideoError: the folder has no frames, or one is missing or damaged.
    """
    for number in itertools.islice(itertools.count(), count):
        file = folder / f"{number:06d}.png"
        if number and not file.exists():
            return
        try:
            stored = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        except OSError as error:
            raise VideoError(folder, f"its frame {file.name} cannot be read: {error.strerror}.") from error
        if stored is None or stored.ndim != 3:
            raise VideoError(folder, f"its frame {file.name} is damaged.")
        yield cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA if stored.shape[2] == 4 else cv2.COLOR_BGR2RGB)
