"""Packet indices of a data set's videos, kept in one Arrow file beside its manifest, so that each is made once.

A row is a file: its path relative to the folder of the Arrow file, its size, time of change and content digest when it
was indexed, and its :class:`PacketIndex`. What is not exactly that file any more has no row. The Arrow file is mapped
into memory, so that all processes of a machine share it. Its record batches are sorted by a hash of the path, and a
later one overrules those before. It is replaced as a whole, under a lock: by whoever finds files without a row, after a
second of indexing (or more, where writing takes long), and by :meth:`StoredIndex.write`. Files that cannot be read are
never in it. Where it cannot be written, indices are only remembered in the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any

import av
import numpy as np
import pyarrow as pa

from icve.data.identity import file_digest
from icve.data.media.packet_index import PacketIndex, VideoInfo
from icve.runtime.atomic import whole_file
from icve.runtime.locks import locked
from icve.runtime.storage.block_cache import cache_folder
from icve.runtime.storage.files import file_state
from icve.runtime.storage.remote_path import RemotePath, as_path, is_url

log = logging.getLogger(__name__)

NAME = "video_index.arrow"
# Another layout, or another FFmpeg, whose demuxers may number or time frames otherwise.
_FORMAT = json.dumps([1, *(av.library_versions[name] for name in ("libavformat", "libavcodec"))])
_MOST_BATCHES = 16
_NUMBERS = pa.large_list(pa.int64())
_SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),
        ("path", pa.large_string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("digest", pa.string()),
        ("facts", pa.large_string()),
        *((name, _NUMBERS) for name in ("pts", "stamps", "keys", "places")),
        ("check", pa.uint32()),
    ],
    metadata={"icve.video_index": _FORMAT},
)


class StoredIndex:
    """The index of a folder: looked into by :func:`find`, added to by :func:`add`.

    Args:
        folder: that the Arrow file lies in.

    Attributes:
        roots: folders whose files it is for.
        kept: whether the folder can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self.file, self.roots = self.folder / NAME, set[str]()
        self._lock = Lock()
        self._mapped: tuple[tuple[int, ...] | None, list[pa.RecordBatch]] = (None, [])
        self._found: dict[str, dict[str, Any]] = {}
        self._spent, self._pause = 0.0, 1.0  # seconds of indexing since it was written; after how many it is again
        # By its mode and not by trying: for the superuser, every folder can be written.
        self.kept = os.path.isdir(self.folder) and bool(os.stat(self.folder).st_mode & 0o222)

    def covers(self, path: str) -> bool:
        """Whether the index is for this file, too."""
        return any(path.startswith(root) for root in self.roots)

    def find(self, path: str, modified: int, size: int) -> PacketIndex | None:
        """Index of the file of this absolute path, time of change and size, None if there is none of that content."""
        name = self._name(path)
        with self._lock:
            row = self._found.get(name)
        if row is None:
            row = next(filter(None, (_row(batch, name) for batch in reversed(self._batches()))), None)
        if row is None or row["size"] != size:
            return None
        index = _index_of(row)
        if index is not None and row["modified"] != modified:  # a copy, or another file of the same size
            if identify(path) != row["digest"]:
                return None
            self._add(name, {**row, "modified": modified}, 0.0)
        return index

    def add(self, path: str, modified: int, size: int, digest: str, index: PacketIndex, seconds: float) -> None:
        """Add a file that took so many seconds to index; now and then, what was added is written."""
        name = self._name(path)
        self._add(name, _row_of(name, index) | {"size": size, "modified": modified, "digest": digest}, seconds)

    def write(self) -> None:
        """Write what was added, together with what other processes have written. Raises OSError."""
        with self._lock:
            found, self._found = self._found, {}
        if not found:
            return
        began = time.perf_counter()
        try:
            with locked(self.file.with_name(f".{NAME}.lock")):
                self._write(found)
        except BaseException:
            with self._lock:
                self._found = found | self._found
            raise
        self._spent = 0.0
        # A hundredth of the time goes into writing, however large the file has become.
        self._pause = max(1.0, 100 * (time.perf_counter() - began))

    def _add(self, name: str, row: dict[str, Any], seconds: float) -> None:
        if not self.kept:
            return
        with self._lock:
            self._found[name] = row
            self._spent += seconds
            due = self._spent >= self._pause
        if due:
            try:
                self.write()
            except OSError as error:
                self.kept, self._found = False, {}
                log.info("Indices of videos stay in memory: %s cannot be written (%s).", self.file, error)

    def _write(self, found: dict[str, dict[str, Any]]) -> None:
        rows = sorted(found.values(), key=lambda row: row["key"])
        batches = [*self._batches(), pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)]
        if len(batches) > _MOST_BATCHES:
            batches = _merged(batches)
        with whole_file(self.file, durable=False) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)

    def _batches(self) -> list[pa.RecordBatch]:
        """Of the Arrow file as it is now; none of a file that is damaged or of another format."""
        try:
            stat = os.stat(self.file)
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._mapped[0]:
                reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
                same = reader.schema.equals(_SCHEMA, check_metadata=True)
                batches = [reader.get_batch(n) for n in range(reader.num_record_batches)] if same else []
                self._mapped = (version, batches)
        except (OSError, pa.ArrowException):
            self._mapped = (None, [])
        return self._mapped[1]

    def _name(self, path: str) -> str:
        """Of a file: where it lies, seen from the folder."""
        return path if is_url(path) else os.path.relpath(path, self.folder).replace(os.sep, "/")


_stores: dict[str, StoredIndex] = {}  # of this process, by folder


def use(folder: str | os.PathLike, root: str | os.PathLike) -> StoredIndex:
    """From now on, look files below a root up in the index of a folder, and add those that are not in it."""
    place, below = os.fspath(folder), os.path.join(root, "")
    if place not in _stores:
        _stores[place] = StoredIndex(Path(folder))
    if below not in _stores[place].roots:
        _stores[place].roots |= {below, os.path.join(as_path(root).resolve(), "")}
    return _stores[place]


def in_use() -> list[tuple[str, str]]:
    """What :func:`use` was called with: for another process, which is to use the same."""
    return [(folder, root) for folder, store in _stores.items() for root in store.roots]


def use_none() -> None:
    """Look files up in no index any more."""
    _stores.clear()


def index_folder(manifest: str | os.PathLike) -> Path:
    """The folder that the index of a manifest's videos lies in: the one beside the manifest, or the one it is; of a
    manifest behind a URL, one in the cache of remote files."""
    path = as_path(manifest)
    if isinstance(path, RemotePath):
        folder = cache_folder() / "video_index" / f"{_key(str(path)):016x}"
        with contextlib.suppress(OSError):  # then it stays in memory
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    return path if path.is_dir() and path.suffix.lower() != ".parquet" else path.parent


def find(path: str, modified: int, size: int) -> PacketIndex | None:
    """Index of a file of this time of change and size from any of the indices in use."""
    return next(filter(None, (store.find(path, modified, size) for store in _for(path))), None)


def identify(path: str) -> str:
    """Content digest of a file, "" where no index in use is for it, or where it cannot be read."""
    try:
        return file_digest(path) if _for(path) else ""
    except OSError:
        return ""


def add(path: str, modified: int, size: int, digest: str, index: PacketIndex, seconds: float) -> None:
    """Add a file that was indexed in so many seconds, and had this digest before, to the indices in use."""
    if not digest:
        return
    try:
        unchanged = file_state(path).modified == modified
    except OSError:
        return
    for store in _for(path) if unchanged else ():
        store.add(path, modified, size, digest, index, seconds)


def _for(path: str) -> list[StoredIndex]:
    place = path if is_url(path) else os.path.abspath(path)
    return [store for store in list(_stores.values()) if store.covers(place)]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def _row(batch: pa.RecordBatch, name: str) -> dict[str, Any] | None:
    """The row of a name, its lists as arrays that are part of the file."""
    key = _key(name)
    at = int(np.searchsorted(_numbers(batch["key"], np.uint64), np.uint64(key)))
    if at == len(batch) or batch["key"][at].as_py() != key or batch["path"][at].as_py() != name:
        return None
    row: dict[str, Any] = {}
    for column in _SCHEMA:
        value = batch[column.name][at]
        lists = column.type == _NUMBERS and value.is_valid
        row[column.name] = _numbers(value.values, np.int64) if lists else value.as_py()
    return row


def _numbers(array: pa.Array, kind: type) -> np.ndarray:
    """An array of 64-bit numbers, not copied. Arrow's own conversion imports pandas, which costs more than a clip."""
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), 8 * array.offset)


def _row_of(name: str, index: PacketIndex) -> dict[str, Any]:
    facts = asdict(index.info) | {"sample_aspect": str(index.info.sample_aspect)}
    rest = {"time_base": str(index.time_base), "origin": index.origin, "stored": index.stored}
    row = {
        "key": _key(name),
        "path": name,
        "facts": json.dumps(facts | rest),
        "pts": _shortened(index.pts),
        # Nearly always the same, which an empty list stands for.
        "stamps": np.empty(0, np.int64) if _equal(index.stamps, index.pts) else _shortened(index.stamps),
        "keys": index.keys,
        "places": index.places,
    }
    return row | {"check": _check(row)}


def _index_of(row: dict[str, Any]) -> PacketIndex | None:
    """The index that a row holds, None where its bytes are not those that were written."""
    if _check(row) != row["check"]:
        return None
    facts = json.loads(row["facts"])
    rest = {name: facts.pop(name) for name in ("time_base", "origin", "stored")}
    info = VideoInfo(**facts | {"sample_aspect": Fraction(facts["sample_aspect"])})
    pts, stamps = (_whole(row[name], info.frames) for name in ("pts", "stamps"))
    return PacketIndex(
        info,
        pts,
        Fraction(rest["time_base"]),
        rest["origin"],
        row["keys"],
        pts if stamps is not None and not len(stamps) else stamps,
        tuple(rest["stored"]),
        row["places"],
    )


def _check(row: dict[str, Any]) -> int:
    check = zlib.crc32(f"{row['path']}\n{row['facts']}".encode(errors="surrogateescape"))
    for name in ("pts", "stamps", "keys", "places"):
        numbers = row[name]
        check = zlib.crc32(b"" if numbers is None else numbers.tobytes(), zlib.crc32(b"/", check))
    return check


def _shortened(numbers: np.ndarray | None) -> np.ndarray | None:
    """Numbers of one step, which most are, as the first and the step."""
    steady = numbers is not None and len(numbers) > 2 and len(np.unique(np.diff(numbers))) == 1
    return np.array([numbers[0], numbers[1] - numbers[0]]) if steady and numbers is not None else numbers


def _whole(numbers: np.ndarray | None, count: int) -> np.ndarray | None:
    """Inverse of :func:`_shortened`."""
    if numbers is None or len(numbers) != 2 or count == 2:
        return numbers
    return numbers[0] + numbers[1] * np.arange(count)


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)


def _merged(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch without the rows that later batches overrule."""
    table = pa.Table.from_batches(batches)
    keys = table["key"].to_numpy()[::-1]
    _, newest = np.unique(keys, return_index=True)
    return table.take(len(keys) - 1 - newest).combine_chunks().to_batches()
