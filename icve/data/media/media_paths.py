"""File names as the media libraries must be given them, and what to say of those that are another system's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path


def media_path(path: str | os.PathLike) -> str:
    """The absolute path of a file: FFmpeg takes what stands before a colon in a relative one for a protocol."""
    return str(Path(path).absolute())  # not abspath: after a linked folder, .. is not the folder that the path names


def foreign_path(path: str | os.PathLike, subject: str | None = None) -> str | None:
    """What to say, in one sentence, of a path that leads nowhere because it is one of Windows; None if it is not.

    ``subject`` begins the sentence in place of the path.
    """
    text = os.fspath(path)
    if os.name == "nt" or not ("\\" in text or _has_drive(text)) or os.path.lexists(text):
        return None
    return (
        f"{subject or text} is a Windows path: write it as it is on this system, with / between folders and without a "
        "drive letter (in a manifest, relative to its root)."
    )


def refuse_foreign(words: Iterable[object]) -> None:
    """Refuse command line words that are paths of Windows, before anything is looked for or written there.

    Args:
        words: of a command line; others than strings, and options without their values, are passed over.

    Raises:
        ValueError: one is, as a word or as the value in ``--option=value``.
    """
    for word in words:
        value = word.partition("=")[2] if isinstance(word, str) and word.startswith("-") else word
        if isinstance(value, str) and _has_drive(value) and (problem := foreign_path(value)):
            raise ValueError(problem)


def _has_drive(text: str) -> bool:
    return re.match(r"[A-Za-z]:[\\/]|\\\\", text) is not None
