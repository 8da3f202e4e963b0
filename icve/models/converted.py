"""Weights that others publish in another layout, converted once into the user's cache."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from icve.models.weight_files import fingerprint


def converted(name: str, source: Path, write: Callable[[Path], None]) -> Path:
    """The folder of a converted copy, which is written where there is none yet.

    Args:
        name: of what it holds, a part of the folder's name.
        source: file or folder that it is made of; other content is another copy.
        write: writes the copy to a folder that does not exist yet, whole or not at all.

    Raises:
        whatever `write` does, except FileExistsError: another process was faster.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "icve" / f"{name}-{fingerprint(source)}"
    if not folder.is_dir():
        with contextlib.suppress(FileExistsError):
            write(folder)
    return folder
