"""Hashes of many clips: made by threads, kept in a file, continued by the next run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from icve.evaluation.leakage.clips import Clip, Fingerprint, fingerprint
from icve.runtime.atomic import whole_file
from icve.runtime.locks import locked
from icve.runtime.process_pools import counting_bar
from icve.runtime.storage.files import file_state

_SAVED_EVERY = 60.0  # seconds, and never more than a twentieth of the time goes into saving
_AT_ONCE = 512  # clips handed to the threads
_MARK = {b"icve.frame_hashes": b"1"}
_SCHEMA = pa.schema(
    {
        **{"file": pa.binary(), "size": pa.int64(), "modified": pa.int64(), "start": pa.int64(), "count": pa.int64()},
        **{"every": pa.float64(), "step": pa.float64()},
        **{"times": pa.list_(pa.float32()), "words": pa.list_(pa.uint64())},
    },
    _MARK,
)
_KEY = ("file", "size", "modified", "start", "count", "every")

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Hashes:
    """Hashes of clips, one clip after the other.

    ``words`` uint64 (M, 2) and ``times`` float32 (M,) hold clip i at ``first[i]`` to ``first[i + 1]``; ``steps``
    is in seconds.
    """

    clips: list[Clip]
    words: np.ndarray
    times: np.ndarray
    first: np.ndarray
    steps: np.ndarray

    def of(self, number: int) -> Fingerprint:
        """The hashes of one clip."""
        part = slice(self.first[number], self.first[number + 1])
        return Fingerprint(self.words[part], self.times[part], self.steps[number])


def join(clips: Sequence[Clip], prints: Sequence[Fingerprint]) -> Hashes:
    """The hashes of these clips together."""
    first = np.cumsum([0, *(len(made.times) for made in prints)])
    words = np.concatenate([np.empty((0, 2), np.uint64), *(made.words for made in prints)])
    times = np.concatenate([np.empty(0, np.float32), *(made.times for made in prints)])
    return Hashes(list(clips), words, times, first, np.array([made.step for made in prints]))


def hash_clips(
    clips: Sequence[Clip], every: float, file: Path | None = None, workers: int = 1, title: str = "Hashing"
) -> tuple[Hashes, list[str]]:
    """Hash clips, or take what ``file`` holds of them.

    Args:
        clips: to hash.
        every: seconds between two frames, at most.
        file: Parquet file of hashes, which is made or continued; it is written whole, about once a minute. A clip whose
            file has changed its size or time is hashed anew.
        workers: threads, each decoding a video.
        title: what the progress bar says.

    Returns:
        The hashes of the clips that could be read, and a sentence for each of the others.

    Raises:
        ValueError: ``file`` holds something else.
        OSError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(file.with_name(file.name + ".lock")))
        table = _read(file)
        stored_keys = zip(*(table[name].to_pylist() for name in _KEY), strict=True)
        known = {key: number for number, key in enumerate(stored_keys)}
        keys, broken = _keys(clips, every)
        missing = [clip for clip, key in keys.items() if key not in known]
        made: dict[Clip, Fingerprint] = {}
        saved, pause = time.monotonic(), _SAVED_EVERY
        with counting_bar(title, Console(stderr=True)) as bar:
            try:
                for clip, found in bar.track(_hash_all(missing, every, workers), total=len(missing)):
                    if isinstance(found, Fingerprint):
                        made[clip] = found
                    else:
                        broken.append(found)
                    if file is not None and time.monotonic() - saved > pause:
                        began = time.monotonic()
                        _write(file, table, keys, made)
                        saved = time.monotonic()
                        pause = max(_SAVED_EVERY, 20 * (saved - began))
            finally:
                if file is not None and made:
                    _write(file, table, keys, made)
    stored = _rows(table)
    readable = [clip for clip in clips if clip in made or keys.get(clip) in known]
    return join(readable, [made[c] if c in made else stored(known[keys[c]]) for c in readable]), broken


def _keys(clips: Sequence[Clip], every: float) -> tuple[dict[Clip, Key], list[str]]:
    keys: dict[Clip, Key] = {}
    broken = []
    for clip in clips:
        try:
            state = file_state(clip.file)
        except OSError as error:
            broken.append(f"{clip.file}: it cannot be opened ({error.strerror or error}).")
        else:
            keys[clip] = (os.fsencode(clip.file), *state, clip.start, clip.count, every)
    return keys, broken


def _hash_all(clips: list[Clip], every: float, workers: int) -> Iterator[tuple[Clip, Fingerprint | str]]:
    def one(clip: Clip) -> Fingerprint | str:
        try:
            return fingerprint(clip, every)
        except (OSError, ValueError) as error:
            return str(error)

    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(0, len(clips), _AT_ONCE):
            some = clips[first : first + _AT_ONCE]
            yield from zip(some, pool.map(one, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption waits for no more than what is being decoded


def _read(file: Path | None) -> pa.Table:
    if file is None or not file.is_file():
        return _SCHEMA.empty_table()
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is no file of hashes: give --hashes another name.") from error
    if not _MARK.items() <= (table.schema.metadata or {}).items():
        raise ValueError(f"{file} is no file of hashes of this version: give --hashes another name.")
    return table


def _write(file: Path, table: pa.Table, keys: dict[Clip, Key], made: dict[Clip, Fingerprint]) -> None:
    columns: dict[str, Any] = dict(zip(_KEY, zip(*(keys[clip] for clip in made), strict=True), strict=True))
    for name in ("step", "times"):
        columns[name] = [getattr(found, name) for found in made.values()]
    columns["words"] = [found.words.ravel() for found in made.values()]
    new = pa.table([pa.array(list(columns[field.name]), field.type) for field in _SCHEMA], schema=_SCHEMA)
    with whole_file(file) as temporary:
        pq.write_table(pa.concat_tables([table, new]), temporary)


def _rows(table: pa.Table) -> Any:
    """A function from the number of a row to its fingerprint."""
    columns = {name: table[name].combine_chunks() for name in ("times", "words")}
    starts = columns["times"].offsets.to_numpy()
    times, words = (columns[name].values.to_numpy() for name in ("times", "words"))
    steps = table["step"].to_numpy()

    def row(number: int) -> Fingerprint:
        part = slice(starts[number], starts[number + 1])
        return Fingerprint(words.reshape(-1, 2)[part], times[part], float(steps[number]))

    return row
