"""The manifest: one row per (source, target, instruction), as Parquet, JSONL or CSV.

Columns this project knows: ``id, source_path, source_start, source_frames, target_path, target_start, target_frames,
width, height, fps, instruction, edit_type, mask_path``; any other column is carried along. Paths are POSIX and relative
to the manifest's *root*: recorded in Parquet metadata, otherwise the manifest's own folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

REQUIRED = ("source_path", "instruction")
_ROOT_KEY = b"icve.root"
_INTEGERS = ("source_start", "source_frames", "target_start", "target_frames", "width", "height", "frames")
_IDENTITY = (
    "source_path",
    "source_start",
    "source_frames",
    "target_path",
    "target_start",
    "target_frames",
    "instruction",
)


class ManifestError(ValueError):
    """A manifest that cannot be used, in one sentence."""


class Manifest(list[Row]):
    """Rows of a manifest and the folder their paths are relative to."""

    def __init__(self, rows: Iterable[Row], root: Path) -> None:
        super().__init__(rows)
        self.root = root


def read_manifest(
    path: str | os.PathLike,
    root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = REQUIRED,
) -> Manifest:
    """Read a manifest.

    Args:
        path: ``.jsonl``, ``.csv`` or ``.parquet`` file, or a folder of Parquet parts (read in order of their names).
        root: folder the paths are relative to; None takes the recorded one, else the manifest's own folder, which is
            the folder that contains the file (or the folder of parts when that is named ``*.parquet``), and otherwise
            the folder of parts itself.
        columns: names in the file → names used here, as in ``{"source": "source_path", "target": "target_path"}``.
        required: columns that must be there (a row may still hold nothing in them).

    Returns:
        Rows with the same keys (None where a row has no value) and a string ``id``; ``.root`` is the root.

    Raises:
        ManifestError: the manifest is missing, empty or malformed, lacks a column, or has a path that leaves the root.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"There is no manifest at {path}.")
    recorded = None
    if path.is_dir() or path.suffix == ".parquet":
        rows, recorded = _read_parquet(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = _read_jsonl(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = _read_csv(path)
    else:
        raise ManifestError(
            f"{path} is not a manifest: give a .jsonl, .csv or .parquet file, or a folder of Parquet files."
        )
    if not rows:
        raise ManifestError(f"The manifest {path} has no rows.")
    if root is None:
        root = _own_folder(path) / (recorded or ".")
    rows = _rename(rows, columns or {}, path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in required:
        if name not in names:
            raise ManifestError(
                f"The manifest {path} has no column {name!r} (it has {', '.join(names)}); "
                f"if it goes by another name there, map it with columns, as in {{its_name: {name}}}."
            )
    return Manifest(
        (_checked(row, names, path, number) for number, row in enumerate(rows, 1)), Path(os.path.abspath(root))
    )


def write_manifest(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, root: str | os.PathLike | None = None
) -> Path:
    """Write a manifest, whole or not at all.

    A path ending in ``.jsonl`` or ``.parquet`` is one file; any other is a folder of Parquet parts, to which this adds
    (or replaces) ``part-00000.parquet``. Stages that write as they go add parts with :func:`write_part`.

    Args:
        rows: rows; an ``id`` is added where it is missing. Paths must be relative to the root (:func:`relative_path`).
        path: the manifest.
        root: folder the paths are relative to, recorded relative to the manifest; None is the manifest's own folder.

    Returns:
        ``path``.

    Raises:
        ManifestError: a path leaves the root, a column mixes types, or the root cannot be recorded (JSONL).
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".ndjson", ".parquet"):
        write_part(rows, path, 0, root)
        return path
    checked = _complete(rows, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        _write_table(checked, path, _recorded_root(path, root))
        return path
    if _recorded_root(path, root) != ".":
        raise ManifestError(
            f"{path} cannot record another root than its own folder: write Parquet, or write it into {root}."
        )
    _atomically(
        path, lambda name: name.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in checked))
    )
    return path


def write_part(
    rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike, part: int | str, root: str | os.PathLike | None = None
) -> Path:
    """Write one Parquet part of a manifest folder, as :func:`write_manifest`; the same part is replaced.

    Returns:
        The part's path, ``part-00007.parquet`` for 7, ``part-<name>.parquet`` for a name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"part-{part:05d}.parquet" if isinstance(part, int) else folder / f"part-{part}.parquet"
    _write_table(_complete(rows, folder), file, _recorded_root(folder, root))
    return file


def relative_path(path: str | os.PathLike, root: str | os.PathLike) -> str:
    """POSIX path of a file relative to the root, as it stands in a manifest. Raises ManifestError outside the root."""
    absolute, folder = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if not absolute.is_relative_to(folder):
        raise ManifestError(f"{path} does not lie in the manifest's root {root}.")
    return absolute.relative_to(folder).as_posix()


def resolve_path(root: str | os.PathLike, path: str) -> Path:
    """File that a manifest's path stands for. Raises ManifestError when it leaves the root, also through a link."""
    _check_path(path, "path")
    folder = Path(root).resolve()
    file = (folder / path).resolve()
    if not file.is_relative_to(folder):
        raise ManifestError(
            f"The path {path!r} leaves the manifest's root {root} through a link: give the true root with --root."
        )
    return file


def content_id(row: Mapping[str, Any]) -> str:
    """Stable id of a row: 16 hex digits of a hash of its clips and instruction, independent of other columns."""
    # A start of 0 may be written or left out: both are the same clip.
    identity = [row.get(name) or None for name in _IDENTITY]
    return hashlib.blake2b(json.dumps(identity, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def _read_parquet(path: Path) -> tuple[list[Row], str | None]:
    parts = sorted(p for p in path.glob("*.parquet") if p.name[0] not in "._") if path.is_dir() else [path]
    if not parts:
        raise ManifestError(f"The folder {path} holds no Parquet files.")
    try:
        tables = [pq.read_table(part) for part in parts]
        roots = {(table.schema.metadata or {}).get(_ROOT_KEY) for table in tables}
        if len(roots) > 1:
            raise ManifestError(f"The parts of {path} record different roots: {sorted(map(str, roots))}.")
        rows = pa.concat_tables(tables, promote_options="permissive").to_pylist()
    except pa.ArrowException as error:
        raise ManifestError(f"The manifest {path} is not readable Parquet ({str(error).splitlines()[0]}).") from error
    recorded = roots.pop()
    return rows, recorded.decode() if recorded else None


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"Line {number} of {path} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ManifestError(f"Line {number} of {path} is not a JSON object.")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=header.count)
        rows = []
        for row in csv.DictReader(file, delimiter=delimiter):
            if None in row or None in row.values():
                raise ManifestError(f"Row {len(rows) + 1} of {path} has another number of cells than the header.")
            rows.append({name: _csv_value(name, cell) for name, cell in row.items()})
    return rows


def _csv_value(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name.endswith("_paths") and cell.startswith("["):
        return json.loads(cell)
    return cell


def _rename(rows: list[Row], columns: Mapping[str, str], path: Path) -> list[Row]:
    if not columns:
        return rows
    present = dict.fromkeys(name for row in rows for name in row)
    for theirs, ours in columns.items():
        if theirs not in present:
            raise ManifestError(
                f"columns maps {theirs!r} to {ours!r}, but {path} has no {theirs!r} (it has {', '.join(present)})."
            )
        if ours in present and ours not in columns and ours != theirs:
            raise ManifestError(f"columns maps {theirs!r} to {ours!r}, but {path} already has a column {ours!r}.")
    return [{columns.get(name, name): value for name, value in row.items()} for row in rows]


def _checked(row: Row, names: Sequence[str], path: Path, number: int) -> Row:
    row = {name: row.get(name) for name in names}
    for name in _INTEGERS:
        if row.get(name) is not None:
            row[name] = _number(row[name], int, f"{name} in row {number} of {path}")
    if row.get("fps") is not None:
        row["fps"] = _number(row["fps"], float, f"fps in row {number} of {path}")
    _check_paths(row, f"row {number} of {path}")
    row["id"] = content_id(row) if row.get("id") in (None, "") else str(row["id"])
    return row


def _number(value: Any, kind: type, what: str) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0 and (kind is float or number == int(number))):
        raise ManifestError(
            f"{what} must be {'a whole number' if kind is int else 'a number'} of at least 0, not {value!r}."
        )
    return kind(number)


def _check_paths(row: Mapping[str, Any], where: str) -> None:
    for name, value in row.items():
        if value is not None and name.endswith("_path"):
            _check_path(value, f"{name} in {where}")
        elif value is not None and name.endswith("_paths"):
            for item in value:
                _check_path(item, f"{name} in {where}")


def _check_path(path: Any, what: str) -> None:
    if not isinstance(path, str) or not path:
        raise ManifestError(f"{what} must be a path, not {path!r}.")
    posix = PurePosixPath(path)
    if posix.is_absolute() or ".." in posix.parts:
        raise ManifestError(
            f"{what} leaves the manifest's root: {path!r} must be relative and without '..' (set the root with --root)."
        )


def _complete(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Row]:
    checked = []
    for number, original in enumerate(rows, 1):
        row = {name: value.as_posix() if isinstance(value, PurePath) else value for name, value in original.items()}
        _check_paths(row, f"row {number} for {path}")
        checked.append({"id": content_id(row), **row})
    return checked


def _write_table(rows: list[Row], file: Path, root: str) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = []
    for name in names:
        try:
            arrays.append(pa.array([row.get(name) for row in rows]))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ManifestError(
                f"Column {name!r} cannot be written to {file}: its values have different types ({error})."
            ) from error
    table = pa.Table.from_arrays(arrays, names=names).replace_schema_metadata({_ROOT_KEY: root.encode()})
    _atomically(file, lambda name: pq.write_table(table, name))


def _own_folder(path: Path) -> Path:
    return path if path.is_dir() and path.suffix != ".parquet" else path.parent


def _recorded_root(path: Path, root: str | os.PathLike | None) -> str:
    # path may not exist yet: what has a suffix is a file
    folder = path.parent if path.suffix else path
    return "." if root is None else Path(os.path.relpath(root, folder)).as_posix()


def _atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
