"""Manifests that the processes of a machine share: checked once, kept as an Arrow file, and mapped into memory.

The file is named after the manifest's files (names, sizes, times of change of content and of state) and after what was
asked of them, so that another manifest has another one. It stands in a hidden folder beside the manifest, or in the
user's cache folder where there can be none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from icve.data.bulk_checks import TYPES
from icve.data.cells import column_values, json_column
from icve.data.identity import json_digest
from icve.data.manifest import absolute_root, manifest_files, of_copy, read_manifest
from icve.data.manifest_table import Manifest, RejectedRow
from icve.data.mapped_arrow import ArrowWriter, open_arrow
from icve.runtime.built_once import built_once, user_cache
from icve.runtime.storage.remote_path import RemotePath, as_path

FREE = ("edit_type",)  # columns that are kept besides those of a fixed type
_FORMAT = 1  # raised when checks or the layout change
_SMALL = 1 << 20  # bytes of a manifest that every process reads for itself
_JSON_FIELD = pa.field("", pa.string(), metadata=json_column([])[1])
_SCHEMA = pa.schema([*TYPES.items(), *(_JSON_FIELD.with_name(name) for name in FREE)])


def mapped_manifest(
    path: str | os.PathLike,
    root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = (),
) -> Manifest:
    """A manifest as :func:`icve.data.manifest.read_manifest` reads it with ``partial``, which one process does for all.

    Its rows have the columns that this project knows, and those of :data:`FREE`. Rejected records have no ``row``.

    Args:
        path, root, columns, required: as there.

    Raises:
        ManifestError: as there.
    """
    if isinstance(remote := as_path(path), RemotePath):
        return of_copy(remote, root, lambda copy, of: mapped_manifest(copy, of, columns, required))
    path = Path(path)

    def read(**options: Any) -> Manifest:
        return read_manifest(path, root, columns, required, partial=True, only=FREE, **options)

    # The time of the last change of any kind: that of the content can be set back.
    stats = [
        (file.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file in manifest_files(path) for s in [file.stat()]
    ]
    if sum(size for _, size, *_ in stats) < _SMALL:
        return read()
    place = os.path.abspath(path)
    asked = [_FORMAT, place, root and str(absolute_root(root)), sorted((columns or {}).items()), list(required)]
    state = json_digest(stats)[:16]
    name = f"{state}-{json_digest(asked)[:16]}.arrow"
    beside = path.parent / f".{path.name}.index"
    files = [beside / name, user_cache("manifests", json_digest(place)[:16]) / name]

    def build(file: Path) -> None:
        with ArrowWriter(file, _SCHEMA) as writer:
            manifest = read(store=lambda batch: writer.add(_in_schema(batch)))
            rejected = [(record.number, record.id, record.reason) for record in manifest.rejected]
            writer.end({"names": manifest.names, "root": str(manifest.root), "rejected": rejected})
        for other in file.parent.glob("*.arrow*"):
            if not other.name.startswith((state, ".")):  # of what the manifest was
                with contextlib.suppress(OSError):
                    other.unlink()

    found = built_once(files, _open, build)
    if found is None:
        return read()
    found.path = path
    return found


def _in_schema(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_column(batch, field) for field in _SCHEMA], schema=_SCHEMA)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(len(batch), field.type)
    own = batch.schema.field(place)
    if field.name in TYPES or own.metadata == field.metadata:
        return batch.column(place)
    if not pa.types.is_string(own.type):
        return json_column(column_values(batch.column(place)))[0]
    few = batch.column(place).dictionary_encode()  # names that repeat
    return json_column(few.dictionary.to_pylist())[0].take(few.indices)


class _Mapped(Manifest):
    """A manifest that other processes map for themselves when they are given it."""

    file: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.file,)


def _open(file: Path) -> Manifest | None:
    found = open_arrow(file)
    if found is None:
        return None
    batches, facts = found
    rejected = [RejectedRow(number, name, reason, {}) for number, name, reason in facts["rejected"]]
    own = [batch.select(facts["names"]) for batch in batches]
    manifest = _Mapped.of_batches(own, facts["names"], as_path(facts["root"]), rejected)
    manifest.file = file
    return manifest


def _open_again(file: Path) -> Manifest:
    manifest = _open(file)
    if manifest is None:
        raise FileNotFoundError(f"The manifest's index {file} has gone or is damaged: start the run again.")
    return manifest
