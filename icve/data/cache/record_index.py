"""The records of a latent cache as one Arrow table, sorted by the ids of their rows.

Opening every shard of a large cache for its records takes long, and every process of a run would do so. They are
gathered once in a file of the cache (``.records.arrow``), which all processes map. It knows the folders and shards it
was made from: while the folders' times are what they were nothing was added or removed; otherwise the shards' names,
sizes and times are compared, and those that are new are read.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from icve.data.cache.latents import LatentCache, Record
from icve.data.identity import FileIdentity, json_digest
from icve.data.mapped_arrow import ArrowWriter, open_arrow
from icve.data.selection import Pair, Videos
from icve.runtime.built_once import built_once, user_cache
from icve.runtime.storage.remote_path import RemotePath

_FILE = ".records.arrow"
_FORMAT = 1
_FEW = 64  # shards that every process reads for itself
_YOUNG = 2.0  # seconds in which a folder may change again without another time
_ROWS = 1 << 14
_NOTHING = (0, 0, -1, 0.0)
_SCHEMA = pa.schema(
    dict.fromkeys(("id", "request", "key", "reason", "shard", "source", "files"), pa.string())
    | dict.fromkeys(("encoded", "width", "height", "frames"), pa.int64())
    | {"fps": pa.float64()}
)
_Stamps = dict[str, list[int]]


class RecordIndex:
    """Records of a cache by the id of their row, newest first.

    Args:
        records: of the cache.
        folder: of the cache.
    """

    def __init__(self, records: Iterable[Record], folder: Path = Path()) -> None:
        self._hold(_sorted([_batch(list(records), folder)]), folder, None)

    @classmethod
    def of(cls, cache: LatentCache) -> RecordIndex:
        """Of all records of a cache.

        Raises:
            ValueError: a shard is damaged.
        """
        if isinstance(cache.folder, RemotePath) or len(_shards(cache.folder)) <= _FEW:
            return cls(cache.records(), cache.folder)
        elsewhere = user_cache("latents", json_digest(os.path.abspath(cache.folder))[:16])
        files = [cache.folder / _FILE, elsewhere / _FILE.lstrip(".")]
        found = built_once(files, lambda file: _fresh(file, cache.folder), lambda file: _write(file, files, cache))
        return cls(cache.records(), cache.folder) if found is None else found

    def _hold(self, batches: list[pa.RecordBatch], folder: Path, file: Path | None) -> None:
        self._batches, self._folder, self._file = [batch for batch in batches if len(batch)], folder, file
        self._first = [batch.column("id")[0].as_py() for batch in self._batches]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (None if self._file is not None else self._batches, self._folder, self._file)

    @property
    def ids(self) -> pa.Array:
        """Of all records, ascending; those of one row newest first."""
        return pa.concat_arrays([pa.array([], pa.string()), *(batch.column("id") for batch in self._batches)])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all records, in the order of :attr:`ids`."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], _SCHEMA.field(name).type)

    def find(self, pair: Pair, request: str) -> list[Record]:
        """Records of the pair as asked for, by all but its files; the newest first, rejections last."""
        found = [self._record(row) for row in self._rows(pair.id) if row["request"] == request]
        return sorted(found, key=lambda record: record.reason is not None)

    def why_not(self, pair: Pair, request: str) -> str:
        """Why :meth:`find` finds nothing, in words."""
        newest = next(self._rows(pair.id), None)
        if newest is None:
            return "it was not encoded"
        there, here = json.loads(newest["request"] or "{}"), json.loads(request)
        name = next((name for name in here if there.get(name) != here[name]), None)
        return f"it was encoded with {name} {there.get(name)}, asked for is {here[name]}" if name else "it was rejected"

    def videos(self, ids: pa.Array, sources: pa.Array) -> Videos:
        """What was seen of the source files of rows when they were encoded, see :func:`icve.data.selection.select`."""
        places = pc.index_in(ids, value_set=self.ids)
        same = pc.fill_null(pc.equal(self.column("source").take(places), sources), False)
        sizes = [self.column(name).take(places) for name in ("width", "height", "frames", "fps")]
        known = pc.and_(same, sizes[0].is_valid()).to_numpy()
        seen = Videos(
            *(
                np.where(known, pc.fill_null(values, nothing).to_numpy(), nothing)
                for values, nothing in zip(sizes, _NOTHING, strict=True)
            )
        )
        # A newer record may be of another file, or of none.
        for at in np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False) & ~known):
            path = sources[int(at)].as_py()
            older = (row for row in self._rows(ids[int(at)].as_py()) if row["source"] == path and row["width"])
            if (row := next(older, None)) is not None:
                for values, name in zip(seen, ("width", "height", "frames", "fps"), strict=True):
                    values[at] = row[name]
        return seen

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a row, newest first."""
        batch = max(0, bisect_left(self._first, name) - 1)
        for of_batch in self._batches[batch:]:
            ids = of_batch.column("id")
            for place in range(bisect_left(range(len(ids)), name, key=lambda at: ids[at].as_py()), len(ids)):
                if ids[place].as_py() != name:
                    return
                yield of_batch.slice(place, 1).to_pylist()[0]

    def _record(self, row: dict[str, Any]) -> Record:
        video = None if row["width"] is None else (row["width"], row["height"], row["frames"], row["fps"])
        files = {role: FileIdentity(**file) for role, file in json.loads(row["files"]).items()}
        shard = None if row["shard"] is None else self._folder / row["shard"]
        return Record(row["id"], row["request"], files, row["key"], video, row["encoded"], row["reason"], shard)


def _again(batches: list[pa.RecordBatch] | None, folder: Path, file: Path | None) -> RecordIndex:
    if file is not None and batches is None:
        found = open_arrow(file)
        if found is None:
            raise FileNotFoundError(f"The index {file} of the latent cache has gone: start the run again.")
        batches = found[0]
    index = RecordIndex.__new__(RecordIndex)
    index._hold(batches or [], folder, file)
    return index


def _batch(records: list[Record], folder: Path) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in records] for name in ("id", "request", "key", "reason", "encoded")
    }
    columns["shard"] = [r.shard and r.shard.relative_to(folder).as_posix() for r in records]
    columns["source"] = [r.files["source"].path if "source" in r.files else None for r in records]
    columns["files"] = [json.dumps({role: asdict(file) for role, file in r.files.items()}) for r in records]
    for at, name in enumerate(("width", "height", "frames", "fps")):
        columns[name] = [None if r.video is None else r.video[at] for r in records]
    return pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in _SCHEMA], schema=_SCHEMA)


def _sorted(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    table = pa.Table.from_batches(batches, _SCHEMA)
    order = pc.sort_indices(table, [("id", "ascending"), ("encoded", "descending")])  # stable
    parts = (table.take(order[start : start + _ROWS]).combine_chunks() for start in range(0, len(order), _ROWS))
    return list(chain.from_iterable(part.to_batches() for part in parts))


def _shards(folder: Path) -> list[Path]:
    """Files with records, in the order of :meth:`LatentCache.records`."""
    kinds = sorted(folder.glob("*/*.safetensors")), sorted((folder / "rejected").glob("*.jsonl"))
    return [file for file in chain(*kinds) if file.name[0] != "."]


def _folder_stamps(folder: Path) -> _Stamps:
    with os.scandir(folder) as entries:
        stats = {entry.name: entry.stat() for entry in entries if entry.is_dir() and entry.name[0] != "."}
    return {name: [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in sorted(stats.items())}


def _file_stamps(folder: Path) -> _Stamps:
    stats = ((file.relative_to(folder).as_posix(), file.stat()) for file in _shards(folder))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def _fresh(file: Path, folder: Path) -> RecordIndex | None:
    """The index in a file; None where it is not that of the cache as it is."""
    found = open_arrow(file)
    if found is None or found[1].get("format") != _FORMAT:
        return None
    batches, facts = found
    folders = facts["folders"]
    # A folder that had changed shortly before may have changed again in the same tick of the clock.
    young = facts["made"] - int(_YOUNG * 1e9)
    settled = all(max(stamp[:2]) < young for stamp in folders.values())
    if not (settled and folders == _folder_stamps(folder)) and facts["files"] != _file_stamps(folder):
        return None
    return _again(batches, folder, file)


def _write(file: Path, known: list[Path], cache: LatentCache) -> None:
    made, folders = time.time_ns(), _folder_stamps(cache.folder)
    files = _file_stamps(cache.folder)
    kept: list[pa.RecordBatch] = []
    before: _Stamps = {}
    found = next((found for found in map(open_arrow, known) if found and found[1].get("format") == _FORMAT), None)
    if found is not None:
        before = {name: stamp for name, stamp in found[1]["files"].items() if files.get(name) == stamp}
        # Records of rejected rows name no shard: they are read again.
        kept = [
            batch.filter(pc.is_in(batch.column("shard"), pa.array(list(before), pa.string()))) for batch in found[0]
        ]
    new = [cache.folder / name for name in files if name not in before or name.startswith("rejected/")]
    read = [_batch(list(cache.records_in(shard)), cache.folder) for shard in new]
    with ArrowWriter(file, _SCHEMA) as writer:
        for batch in _sorted([*kept, *read]):
            writer.add(batch)
        writer.end({"format": _FORMAT, "made": made, "folders": folders, "files": files})
