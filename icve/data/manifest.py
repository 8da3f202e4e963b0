"""The manifest: one row per (source, target, instruction), as Parquet, JSON, JSON lines or CSV.

Columns this project knows: ``id, source_path, source_start, source_frames, target_path, target_start, target_frames,
width, height, fps, instruction, edit_type, mask_path``; any other column is carried along. Paths are POSIX and relative
to the manifest's *root*: recorded in Parquet metadata, otherwise the manifest's own folder. Tables are read in
:mod:`icve.data.tables`; :mod:`icve.data.manifest_reading` makes their records rows, or rejects them one by one.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from icve.data.bulk_checks import TYPES
from icve.data.cells import json_value, to_table
from icve.data.manifest_reading import Reading
from icve.data.manifest_table import Manifest
from icve.data.rows import (
    FILES,
    INTEGERS,
    Row,
    check_paths,
    content_id,
    path_checker,
)
from icve.data.tables import SUFFIXES, ManifestError
from icve.runtime.atomic import whole_file
from icve.runtime.printable import json_line
from icve.runtime.storage.files import local_copy
from icve.runtime.storage.remote_path import RemotePath, as_path, is_url

log = logging.getLogger(__name__)

REQUIRED = ("source_path", "instruction")
ROOTS = "ICVE_ROOTS"  # environment variable: folders, besides the root, that links below the root may lead into
_ROOT_KEY = b"icve.root"


def parquet_parts(folder: Path) -> list[Path]:
    """The files of a manifest that is a folder, in order of their names; none in a folder that is no manifest."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".parquet" and file.name[0] not in "._")


def read_manifest(
    path: str | os.PathLike,
    root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = REQUIRED,
    partial: bool = False,
    only: Collection[str] | None = None,
    store: Callable[[pa.RecordBatch], object] | None = None,
) -> Manifest:
    """Read a manifest.

    A record that cannot be a row costs only itself: a line that is not JSON, a number or path that is none, an
    instruction that is no text (NaN, a number, a list). It is in ``.rejected`` with its reason.

    Args:
        path: ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file (:mod:`icve.data.tables`), or a folder of
            Parquet parts (read in order of their names); local or a URL, of which a copy is read.
        root: folder or URL the paths are relative to; None takes the recorded one, else the manifest's own folder:
            the folder that contains the file (or the folder of parts when that is named ``*.parquet``), and otherwise
            the folder of parts itself.
        columns: names in the file → names used here, as in ``{"source": "source_path", "target": "target_path"}``.
        required: columns that must be there (a row may still hold nothing in them).
        partial: the caller tells of ``.rejected``, which may be all records; otherwise they are logged, and a manifest
            without any row raises.
        only: names (as used here) of the free columns that rows are to have, besides those that this project knows;
            None takes all.
        store: called with the rows' columns, some thousand rows at a time, in place of keeping them: the manifest that
            is returned then has none.

    Returns:
        Rows with the same keys (None where a row has no value), a string ``id`` and paths relative to ``.root``, also
        where the file has absolute ones inside it.

    Raises:
        ManifestError: the manifest is missing, empty or damaged, lacks a column, or has no row that can be used.
        RemoteError: the server of a URL does not give it.
    """
    if isinstance(remote := as_path(path), RemotePath):
        return of_copy(remote, root, lambda copy, of: read_manifest(copy, of, columns, required, partial, only, store))
    path = Path(path)
    parts = manifest_files(path)
    columns = columns or {}
    recorded = _recorded_in(parts, path) if parts[0].suffix.lower() == ".parquet" else None
    own = absolute_root(_joined(_own_folder(path), recorded) if root is None else root)
    batches: list[pa.RecordBatch] = []
    reading = Reading(path, own, columns, None if only is None else {*TYPES, *only}, store or batches.append)
    wanted = {*REQUIRED, *required, *FILES, *INTEGERS, *columns}
    for part in parts:
        reading.read(part, wanted)
    if not reading.records:
        raise ManifestError(f"The manifest {path} has no rows.")
    if not reading.readable:
        raise ManifestError(f"{path} has no record that can be read: {reading.malformed}")
    _check_columns(columns, reading.present, path)
    for name in required:
        if name not in reading.names:
            raise ManifestError(
                f"The manifest {path} has no column {name!r} (it has {', '.join(map(str, reading.names))}); "
                f"if it goes by another name there, map it: --columns ITS_NAME={name}, or in a training configuration "
                f"columns: {{ITS_NAME: {name}}}."
            )
    names = list(dict.fromkeys(name for name in (*reading.names, "id") if reading.keeps(name)))
    rejected = sorted(reading.rejected, key=attrgetter("number"))
    manifest = Manifest.of_batches(batches, names, own, rejected, path)
    if manifest.rejected and not partial:
        if len(manifest.rejected) == reading.records:
            raise ManifestError(f"The manifest {path} has no row that can be used: {manifest.rejected[0].reason}")
        counts = len(manifest.rejected), reading.records
        log.warning("%d of %d rows are left out; the first: %s", *counts, manifest.rejected[0].reason)
    return manifest


def manifest_files(path: Path) -> list[Path]:
    """The files of a manifest, in the order of its rows. Raises ManifestError where there is none."""
    if not path.exists():
        raise ManifestError(f"There is no manifest at {path}.")
    parts = parquet_parts(path) if path.is_dir() else [path]
    if not parts:
        raise ManifestError(f"The folder {path} holds no Parquet files.")
    if parts[0].suffix.lower() not in SUFFIXES:
        raise ManifestError(
            f"{path} is not a manifest: give a file ending in {', '.join(sorted(SUFFIXES))}, or a folder of Parquet "
            "files."
        )
    return parts


def absolute_root(root: str | os.PathLike) -> Path:
    """The root that a path or URL names, from anywhere."""
    place = as_path(root)
    return place if isinstance(place, RemotePath) else Path(os.path.abspath(place))


def _joined(folder: Path, recorded: str | None) -> Path:
    """The root that a manifest in a folder records."""
    if recorded and is_url(recorded):
        return as_path(recorded)
    return as_path(f"{folder}/{recorded or '.'}")


def of_copy(
    path: RemotePath, root: str | os.PathLike | None, read: Callable[[Path, str | os.PathLike], Manifest]
) -> Manifest:
    """A manifest behind a URL: a copy of it is read, with its root; what is said names the URL.

    Raises:
        ManifestError: there is none, or it is none.
        RemoteError: the server does not give it.
    """
    try:
        copy = local_copy(path)
    except FileNotFoundError as error:
        raise ManifestError(f"There is no manifest at {path}.") from error
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        raise ManifestError(f"{path} cannot be read ({error.strerror}).") from error
    try:
        if root is None:
            parts = parquet_parts(copy) if copy.is_dir() else [copy]
            parquet = bool(parts) and parts[0].suffix.lower() == ".parquet"
            folder = path if copy.is_dir() and path.suffix.lower() != ".parquet" else path.parent
            root = _joined(folder, _recorded_in(parts, copy) if parquet else None)
        manifest = read(copy, root)
    except ManifestError as error:
        raise ManifestError(str(error).replace(str(copy), str(path))) from error
    manifest.rejected = [replace(one, reason=one.reason.replace(str(copy), str(path))) for one in manifest.rejected]
    manifest.path = path
    return manifest


def column_names(pairs: Iterable[str]) -> dict[str, str]:
    """The argument `columns` of :func:`read_manifest` from words of a command line, as in "video=source_path".

    Raises:
        ValueError: a word is no such pair.
    """
    columns = {}
    for pair in pairs:
        theirs, separator, ours = pair.partition("=")
        if not (theirs and separator and ours):
            raise ValueError(f"--columns takes pairs like video=source_path, not {pair!r}.")
        columns[theirs] = ours
    return columns


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
        ManifestError: a path leaves the root, a value cannot be written, or the root cannot be recorded (JSONL).
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".parquet"):
        write_part(rows, path, 0, root)
        return path
    checked = _complete(rows, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        _write_table(checked, path, _recorded_root(path, root))
        return path
    if _recorded_root(path, root) != ".":
        raise ManifestError(
            f"{path} cannot record another root than its own folder: write Parquet, or write it into {root}."
        )
    lines = "".join(json_line(row, json_value) for row in checked).encode()
    with whole_file(path) as temporary:
        temporary.write_bytes(lines)
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
    absolute, folder = absolute_root(path), absolute_root(root)
    if not absolute.is_relative_to(folder):
        raise ManifestError(f"{path} does not lie in the manifest's root {root}.")
    return absolute.relative_to(folder).as_posix()


def resolve_path(root: str | os.PathLike, path: str) -> Path:
    """File that a manifest's path stands for, absolute or relative to the root.

    Below a remote root, it is a URL.

    Links are followed where they stay inside the root, or lead into the ``blobs`` of the Hugging Face cache that the
    root is a snapshot of, or into a folder that the user names in ``ICVE_ROOTS`` (separated as in ``PATH``).

    Raises:
        ManifestError: it leaves the root, also through a link.
    """
    root = as_path(root)
    relative = path_checker(root)(path, "path")
    if isinstance(root, RemotePath):
        return root / relative
    try:
        folder = root.resolve()
        file = (folder / relative).resolve()
    except UnicodeEncodeError as error:
        raise ManifestError(f"The path {path!r} cannot be said in this locale: set PYTHONUTF8=1.") from error
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, for example
        raise ManifestError(f"The path {path!r} cannot be followed ({error}).") from error
    if not file.is_relative_to(folder) and not any(map(file.is_relative_to, _folders_of_links(folder))):
        name = shlex.quote(str(_link_target(folder, relative)))
        raise ManifestError(
            f"The path {path!r} leaves the manifest's root {root} through a link, to {file}: if that is right, name "
            f"the folder it leads into in the environment, as in `{ROOTS}={name}`."
        )
    return folder / relative  # by its own name: what a link leads to need not have its suffix


def _link_target(folder: Path, relative: str) -> Path:
    """The folder that the first link out of ``folder`` leads into: where it is one to a folder, this one."""
    place = folder
    for part in Path(relative).parts:
        place /= part
        if place.is_symlink() and not (target := place.resolve()).is_relative_to(folder):
            return target if target.is_dir() else target.parent
    return place.resolve().parent


def _folders_of_links(folder: Path) -> Iterator[Path]:
    """Folders, links resolved, that links below ``folder`` may lead into."""
    for place in filter(None, os.environ.get(ROOTS, "").split(os.pathsep)):
        yield Path(place).resolve()
    for version in (folder, *folder.parents):
        if version.parent.name == "snapshots":  # as huggingface_hub lays out its cache
            yield version.parent.parent / "blobs"


def _recorded_in(parts: Sequence[Path], path: Path) -> str | None:
    """The root that the files of a manifest record."""
    roots = set()
    for part in parts:
        try:
            roots.add((pq.read_schema(part).metadata or {}).get(_ROOT_KEY))
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{part} is not readable Parquet ({str(error).splitlines()[0]}).") from error
    if len(roots) > 1:
        raise ManifestError(
            f"The parts of {path} record different roots ({', '.join(sorted(map(str, roots)))}): keep those of one "
            "root in a folder."
        )
    recorded = roots.pop()
    return recorded.decode() if recorded else None


def _check_columns(columns: Mapping[str, str], present: Collection[str], path: Path) -> None:
    for theirs, ours in columns.items():
        if theirs not in present:
            raise ManifestError(
                f"columns maps {theirs!r} to {ours!r}, but {path} has no {theirs!r} (it has {', '.join(present)})."
            )
        if ours in present and ours not in columns and ours != theirs:
            raise ManifestError(f"columns maps {theirs!r} to {ours!r}, but {path} already has a column {ours!r}.")


def _complete(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Row]:
    checked = []
    for number, original in enumerate(rows, 1):
        row = {name: value.as_posix() if isinstance(value, PurePath) else value for name, value in original.items()}
        check_paths(row, f"in row {number} for {path}")
        checked.append({"id": content_id(row), **row})
    return checked


def _write_table(rows: list[Row], file: Path, root: str) -> None:
    try:
        table = to_table(rows).replace_schema_metadata({_ROOT_KEY: root.encode()})
    except ValueError as error:
        raise ManifestError(f"{file} cannot be written: {error}") from error
    with whole_file(file) as temporary:
        pq.write_table(table, temporary)


def _own_folder(path: Path) -> Path:
    return path if path.is_dir() and path.suffix.lower() != ".parquet" else path.parent


def _recorded_root(path: Path, root: str | os.PathLike | None) -> str:
    if root is not None and is_url(root):
        return str(as_path(root))
    # path may not exist yet: what has a suffix is a file
    folder = path.parent if path.suffix else path
    return "." if root is None else Path(os.path.relpath(root, folder)).as_posix()
