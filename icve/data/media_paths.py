"""File names as the media libraries must be given them, and what to say of those that are another system's."""

from __future__ import annotations

import os
import re


def media_path(path: str | os.PathLike) -> str:
    """The absolute path of a file: FFmpeg takes what stands before a colon in a relative one for a protocol."""
    return os.path.abspath(os.fspath(path))


def foreign_path(path: str | os.PathLike) -> str | None:
    """What to say, in one sentence, of a path that leads nowhere because it is one of Windows; None if it is not."""
    text = os.fspath(path)
    if os.name == "nt" or not ("\\" in text or _has_drive(text)) or os.path.lexists(text):
        return None
    return (
        f"{text} is a Windows path: write it as it is on this system, with / between folders and without a drive "
        "letter (in a manifest, relative to its root)."
    )


def refuse_foreign(**options: object) -> None:
    """Refuse paths of Windows before something is written to or looked for at them. Raises ValueError.

    Args:
        options: paths (other values are passed over) by the names of their command line options.
    """
    for name, value in options.items():
        if isinstance(value, str | os.PathLike) and _has_drive(os.fspath(value)) and (problem := foreign_path(value)):
            raise ValueError(f"--{name.replace('_', '-')} {problem}")


def _has_drive(text: str) -> bool:
    return re.match(r"[A-Za-z]:[\\/]|\\\\", text) is not None
