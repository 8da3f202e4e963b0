"""Text that may hold what an encoding cannot: names of files that are no UTF-8, lone surrogates, signs beyond ASCII."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
_SPELLED = str.maketrans(
    {"✓": "+", "✗": "x", "▶": ">", "–": "-", "—": "-", "−": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "..."}
    | {"×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": "*", "•": "*", "\u00a0": " "}
)


def forgive_output() -> None:
    """Let standard output and error print everything, whatever their encoding is.

    Signs that the encoding lacks become plain ones that look alike, or are spelled out, as in ``\\u4e2d``; so are bytes
    in the names of files that are no UTF-8, as in ``caf\\xe9.mp4``, so that whoever reads the output can decode it.
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


def json_line(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """A line of a UTF-8 file of JSON lines; ``default`` is that of ``json.dumps``.

    What is no text, and what ends a line for some readers of text (U+2028 and its like), stands there as an escape, and
    is the same when read.
    """
    text = json.dumps(value, ensure_ascii=False, default=default)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n"


def json_lines(path: Path, errors: str = "strict") -> list[str]:
    """Lines of a JSON lines file. They end at a line feed alone: U+2028 and its like are text within a line."""
    text = path.read_text(encoding="utf-8", errors=errors)
    return text.removesuffix("\n").split("\n") if text else []


def _spelled(error: UnicodeError) -> tuple[str, int]:
    text, end = _escaped(error)
    plain = text.translate(_SPELLED)
    # A handler's answer must itself fit the encoding, which is one of ASCII's at least.
    return plain if plain.isascii() else plain.encode("ascii", "backslashreplace").decode(), end


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_escape, letters)), error.end


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"  # a byte of a file's name
    return f"\\u{ord(letter):04x}" if "\ud800" <= letter <= "\udfff" else letter


codecs.register_error("icve.spelled", _spelled)
codecs.register_error("icve.escaped", _escaped)
