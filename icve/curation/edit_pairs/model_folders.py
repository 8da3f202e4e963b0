"""Folders of published models that stages are given."""

from __future__ import annotations

from pathlib import Path


def model_folder(path: str, index: str = "config.json") -> Path:
    """The folder, which must hold the file `index`. Raises ValueError."""
    folder = Path(path).expanduser()
    if not (folder / index).is_file():
        raise ValueError(f"There is no model in '{path}' (no {index}): download it there or name another folder.")
    return folder
