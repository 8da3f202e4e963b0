"""Text files that users write: in UTF-8, or named with what is wrong."""

from __future__ import annotations

import os


def not_utf8(file: str | os.PathLike) -> str | None:
    """What to say of a text file in another encoding, in one sentence; None of one in UTF-8. Raises OSError."""
    with open(file, "rb") as stream:
        content = stream.read()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"{file} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}): save it as UTF-8."
    return None
