"""Checkpoint folders get and lose their names in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from icve.models.run_folders import LAST


def point_to(checkpoint: Path, name: str = LAST) -> None:
    """Make `name` beside a checkpoint a link to it, replacing the previous link in one step."""
    temporary = checkpoint.parent / f".{name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, checkpoint.parent / name)


def remove_folder(path: Path) -> None:
    """Remove a folder; it loses its name first, so that an interrupted removal leaves no broken checkpoint."""
    if path.exists():
        doomed = path.parent / f".{path.name}.{os.getpid()}.removed.tmp"
        os.rename(path, doomed)
        shutil.rmtree(doomed)
