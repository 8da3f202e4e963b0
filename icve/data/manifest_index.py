"""Manifests that the processes of a machine share: checked once, kept as an Arrow file, and mapped into memory.

The file is named after the manifest's files (names, sizes, times of change) and after what was asked of them, so that
another manifest has another one. It stands in a hidden folder beside the manifest, or in the user's cache folder where
that cannot be written to. Behind the Arrow file, in the same file, stands what its schema cannot say: as JSON, and the
length of that in the last 8 bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from icve.data.bulk_checks import TYPES
from icve.data.cells import column_values, json_column
from icve.data.identity import json_digest
from icve.data.manifest import manifest_files, read_manifest
from icve.data.manifest_table import Manifest, RejectedRow
from icve.runtime.built_once import built_once, user_cache

FREE = ("edit_type",)  # columns that are kept besides those of a fixed type
_FORMAT = 1  # raised when checks or the layout change
_SMALL = 1 << 20  # bytes of a manifest that every process reads for itself
_ROWS = 1 << 14  # of a batch, at least
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
    path = Path(path)

    def read(**options: Any) -> Manifest:
        return read_manifest(path, root, columns, required, partial=True, only=FREE, **options)

    stats = [(file.name, stat.st_size, stat.st_mtime_ns) for file in manifest_files(path) for stat in [file.stat()]]
    if sum(size for _, size, _ in stats) < _SMALL:
        return read()
    place = os.path.abspath(path)
    asked = [_FORMAT, place, root and os.path.abspath(root), sorted((columns or {}).items()), list(required)]
    state = json_digest(stats)[:16]
    name = f"{state}-{json_digest(asked)[:16]}.arrow"
    beside = path.parent / f".{path.name}.index"
    files = [beside / name, user_cache("manifests", json_digest(place)[:16]) / name]

    def build(file: Path) -> None:
        with _Writer(file) as writer:
            writer.close(read(store=writer.add))
        for other in files[0].parent.glob("*.arrow"):
            if not other.name.startswith(state):  # of what the manifest was
                with contextlib.suppress(OSError):
                    other.unlink()

    found = built_once(files, _open, build)
    if found is None:
        return read()
    found.path = path
    return found


class _Writer:
    def __init__(self, file: Path) -> None:
        self._sink = pa.OSFile(str(file), "wb")
        self._arrow = pa.ipc.new_file(self._sink, _SCHEMA)
        self._pending: list[pa.RecordBatch] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._sink.close()

    def add(self, batch: pa.RecordBatch) -> None:
        columns = [_column(batch, field) for field in _SCHEMA]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        if sum(map(len, self._pending)) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            for batch in pa.Table.from_batches(self._pending).combine_chunks().to_batches():
                self._arrow.write_batch(batch)
        self._pending = []

    def close(self, manifest: Manifest) -> None:
        self._flush()
        self._arrow.close()
        rejected = [(record.number, record.id, record.reason) for record in manifest.rejected]
        facts = {"names": manifest.names, "root": str(manifest.root), "rejected": rejected}
        text = json.dumps(facts).encode()
        self._sink.write(text + len(text).to_bytes(8, "little"))


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(len(batch), field.type)
    own = batch.schema.field(place)
    if field.name in TYPES or own.metadata == field.metadata:
        return batch.column(place)
    return json_column(column_values(batch.column(place)))[0]


class _Mapped(Manifest):
    """A manifest that other processes map for themselves when they are given it."""

    file: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.file,)


def _open(file: Path) -> Manifest | None:
    try:
        with pa.memory_map(str(file)) as source:
            whole = source.read_buffer()
        end = len(whole) - 8
        start = end - int.from_bytes(whole[end:], "little")
        facts = json.loads(whole[start:end].to_pybytes())
        reader = pa.ipc.open_file(whole[:start])
        names = facts["names"]
        batches = [reader.get_batch(number).select(names) for number in range(reader.num_record_batches)]
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None
    rejected = [RejectedRow(number, name, reason, {}) for number, name, reason in facts["rejected"]]
    manifest = _Mapped.of_batches(batches, names, Path(facts["root"]), rejected)
    manifest.file = file
    return manifest


def _open_again(file: Path) -> Manifest:
    manifest = _open(file)
    if manifest is None:
        raise FileNotFoundError(f"The manifest's index {file} has gone or is damaged: start the run again.")
    return manifest
