"""Cells of a manifest's rows: what each may hold, and the name of a row."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from icve.data.tables import Malformed, ManifestError, Record
from icve.runtime.printable import is_text
from icve.runtime.storage.remote_path import RemotePath, as_path, is_url

Row = dict[str, Any]

INTEGERS = ("source_start", "source_frames", "target_start", "target_frames", "width", "height", "frames")
LARGEST = 2**53  # whole numbers up to here are exact in every format
FILES = (
    *("source_path", "target_path", "mask_path", "mask_video_path", "reference_path", "edit_layer_path"),
    *("edit_alpha_path", "object_mask_path", "result_path"),
)
FILE_LISTS = ("distractor_paths",)
IDENTITY = (
    "source_path",
    "source_start",
    "source_frames",
    "target_path",
    "target_start",
    "target_frames",
    "instruction",
)
_AS_ROOT = "as the root (--root, or data.init_args.root of a training configuration)"
SLOWEST = 1e-6  # frames per second
_MISSING = frozenset({"none", "null", "<na>", "n/a"})  # how programs spell a missing value as text; "nan" is a number


def content_id(row: Mapping[str, Any]) -> str:
    """Stable id of a row: 16 hex digits of a hash of its clips and instruction, independent of other columns."""
    # A start of 0 may be written or left out: both are the same clip.
    return _digest([row.get(name) or None for name in IDENTITY])


def instruction_problem(value: Any) -> str | None:
    """Why a cell is no instruction, to go on from "its instruction"; None if it is one, or is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        return f"is {value!r:.80} and not a text: write in words what is to change"
    try:
        float(value)
    except ValueError:
        return f"is {value!r}, a missing value" if value.strip().casefold() in _MISSING else None
    return f"is {value!r} and no words: write what is to change"


def row_checker(names: Sequence[str], path: Path, root: Path) -> Callable[[Record, int], Row]:
    """A function that makes a record, with its number in the table, a row; it raises ManifestError if it is none.

    Args:
        names: columns of the table, which every row has.
        path: of the table, for the reason.
        root: folder that paths are relative to.
    """

    inside = path_checker(root)

    def check(record: Record, number: int) -> Row:
        row = {name: record.get(name) for name in names}
        where = f"in row {number} of {path}"
        for name, value in row.items():
            if value is None:
                continue
            if is_unwritable(value):
                raise ManifestError(f"{name} {where} holds half a character: write it as whole UTF-8 text.")
            if name in INTEGERS:
                row[name] = _number(value, int, f"{name} {where}")
            elif name == "fps":
                row[name] = fps = _number(value, float, f"{name} {where}")
                if 0 < fps < SLOWEST:
                    raise ManifestError(f"{name} {where} must be at least {SLOWEST:g}, or 0 where it is not known.")
            elif name in FILES:
                row[name] = inside(value, f"{name} {where}")
            elif name in FILE_LISTS:
                row[name] = [inside(item, f"{name} {where}") for item in _listed(value, f"{name} {where}")]
        if problem := instruction_problem(row.get("instruction")):
            raise ManifestError(f"instruction {where} {problem}.")
        own = row.get("id")
        if own not in (None, "") and not _names_row(own):
            raise ManifestError(f"id {where} is {own!r:.80} and no name: give a text or a number.")
        row["id"] = content_id(row) if own in (None, "") else str(own)
        return row

    return check


def _names_row(own: Any) -> bool:
    if isinstance(own, float):
        return math.isfinite(own)
    return own not in (None, "") and not isinstance(own, (bytes, list, tuple, dict))


def is_unwritable(value: Any) -> bool:
    """Whether a value holds text that UTF-8 cannot say."""
    if isinstance(value, str):
        return not is_text(value)
    if isinstance(value, dict):
        return any(map(is_unwritable, chain.from_iterable(value.items())))
    return isinstance(value, (list, tuple)) and any(map(is_unwritable, value))


def _number(value: Any, kind: type, what: str) -> Any:
    try:
        number = math.nan if isinstance(value, (bool, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 <= number <= LARGEST and (kind is float or number == int(number))):
        raise ManifestError(
            f"{what} must be {'a whole number' if kind is int else 'a number'} of at least 0, not {value!r:.80}."
        )
    return kind(number)


def _listed(value: Any, what: str) -> list[Any]:
    """Paths of a cell: a list, or a CSV's text of one."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ManifestError(f"{what} must be a list of paths, not {value!r:.80}.") from None
    if not isinstance(value, list):
        raise ManifestError(f"{what} must be a list of paths, not {value!r:.80}.")
    return value


def id_of_rejected(record: Record | Malformed) -> str:
    """A name for a record that is no row: its own id, or a hash of what it holds."""
    if isinstance(record, Malformed):
        return _digest(record.given)
    own = record.get("id")
    return str(own) if _names_row(own) and not is_unwritable(own) else content_id(record)


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def check_paths(row: Mapping[str, Any], where: str) -> None:
    """Raise ManifestError for a row whose paths cannot be written to a manifest: they must be relative."""
    inside = path_checker(None)
    for name, value in row.items():
        if value is not None and name in (*FILES, *FILE_LISTS):
            for path in value if name in FILE_LISTS else [value]:
                inside(path, f"{name} {where}")


def names_of_root(root: Path) -> list[str]:
    """What absolute paths of files below the root begin with. Links are resolved: this asks the file system."""
    known = (root,) if isinstance(root, RemotePath) else (Path(os.path.abspath(root)), root.resolve())
    return [f"{name.as_posix().rstrip('/')}/" for name in known]


def path_checker(root: Path | None) -> Callable[[Any, str], str]:
    """A function that gives a path, told what it is, relative to the root, which absolute ones may name.

    Without a root it takes relative ones only. It raises ManifestError for others, and does not follow links.
    """
    folders: list[str] = []  # the root's names, found out once: resolving it asks the file system

    def inside(path: Any, what: str) -> str:
        if not isinstance(path, str) or not path or "\0" in path:
            raise ManifestError(f"{what} must be a path, not {path!r:.80}.")
        if ".." in path and ".." in path.split("/"):
            raise ManifestError(
                f"{what} leaves the manifest's root or may do so: {path!r} holds '..'; write the manifest's paths "
                f"relative to a folder that holds all the files, and name it {_AS_ROOT}."
            )
        remote = ":/" in path and is_url(path)
        if not path.startswith("/") and not remote:
            return path
        if root is not None and not folders:
            folders.extend(names_of_root(root))
        posix = (as_path(path) if remote else PurePosixPath(path)).as_posix()
        for folder in folders:
            if posix.startswith(folder) and posix != folder:
                return posix.removeprefix(folder)
        raise ManifestError(
            f"{what} leaves the manifest's root{'' if root is None else f' {root}'}: {path!r} lies elsewhere; name a "
            f"folder that holds it {_AS_ROOT}."
        )

    return inside
