"""Text that may hold what an encoding cannot: names of files that are no UTF-8, lone surrogates, signs beyond ASCII."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import sys
from typing import Any

_SPELLED = str.maketrans(
    {"✓": "+", "✗": "x", "▶": ">", "–": "-", "—": "-", "−": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "..."}
    | {"×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": "*", "•": "*", "\u00a0": " "}
)


def forgive_output() -> None:
    """Let standard output and error print everything, whatever their encoding is.

    Names of files come out with the bytes that they have. Signs that the encoding lacks become plain ones that look
    alike, or are spelled out, as in ``\\u4e2d``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):  # closed
                stream.reconfigure(errors="icve.spelled")


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: names of files with other bytes, and lone surrogates, cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: Any) -> Any:
    """A string, or every string in lists and mappings, with what is no text spelled out, as in ``caf\\xe9.mp4``."""
    if isinstance(value, str):
        return value if is_text(value) else value.encode("utf-8", "icve.escaped").decode("utf-8")
    if isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    if isinstance(value, dict):
        return {as_text(name): as_text(item) for name, item in value.items()}
    return value


def json_line(value: Any) -> str:
    """A line of a UTF-8 file of JSON lines. What is no text stands there as an escape, and is the same when read."""
    text = json.dumps(value, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(value)) + "\n"


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if error.encoding.lower().startswith(("utf-16", "utf-32", "utf_16", "utf_32")):
        return _escaped(error)  # bytes of their own would be no text there
    out = b""
    for letter in error.object[error.start : error.end]:
        if "\udc80" <= letter <= "\udcff":
            out += bytes([ord(letter) - 0xDC00])  # a byte of a file's name
            continue
        plain = letter.translate(_SPELLED)
        plain = plain if plain.isascii() else letter.encode("ascii", "backslashreplace").decode()
        out += plain.encode(error.encoding)
    return out, error.end


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(f"\\x{ord(x) - 0xDC00:02x}" if "\udc80" <= x <= "\udcff" else f"\\u{ord(x):04x}" for x in letters), (
        error.end
    )


codecs.register_error("icve.spelled", _spelled)
codecs.register_error("icve.escaped", _escaped)
