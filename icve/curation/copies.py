"""Copies: videos that are an earlier one under another name, and are not curated again."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from icve.atomic import whole_file
from icve.curation.inputs import Inputs, locked
from icve.data.identity import file_digest
from icve.data.manifest import resolve_path
from icve.jobs import counting_bar

_READERS = 16  # threads: reading a few blocks of a file is mostly waiting
_COLUMNS = ("input", "size", "modified", "digest")

State = tuple[str, int, int]  # name, size in bytes, time of change in nanoseconds


def mark_copies(file: Path, inputs: Inputs, names: Sequence[str]) -> Inputs:
    """The same inputs with their ``copies``: names of files that have the content of an earlier one, the first such.

    Only files of equal size are read, of each at most 1 MiB (`icve.data.identity.file_digest`). What was read is
    remembered in ``file``, so that all processes of a run, and its reruns, read it once. Empty files, files that cannot
    be read and rows of a manifest are nobody's copy.

    Args:
        file: Parquet of digests.
        inputs: of the run.
        names: what is worked on, in the order in which the first of equal files stays.

    Raises:
        OSError: ``file`` cannot be written.
    """
    alike = [] if inputs.rows is not None else _of_equal_size(inputs.root, names)
    if not alike:
        return inputs
    digests = _digests(file, inputs.root, alike)
    first: dict[str, str] = {}
    copies = {}
    for state in alike:
        digest, name = digests.get(state), state[0]
        if digest is not None and first.setdefault(digest, name) != name:
            copies[name] = first[digest]
    return replace(inputs, copies=copies)


def _of_equal_size(root: Path, names: Sequence[str]) -> list[State]:
    states: list[State] = []
    counts: defaultdict[int, int] = defaultdict(int)
    for name in names:
        try:
            stat = os.stat(root / name)
        except OSError:
            continue
        states.append((name, stat.st_size, stat.st_mtime_ns))
        counts[stat.st_size] += 1
    return [state for state in states if state[1] and counts[state[1]] > 1]


def _digests(file: Path, root: Path, states: Sequence[State]) -> dict[State, str]:
    """Digests of files, of those that can be read."""
    with locked(file.with_suffix(".lock")):
        known: dict[State, str] = {}
        if file.is_file():
            names, sizes, times, digests = (pq.read_table(file)[column].to_pylist() for column in _COLUMNS)
            known = dict(zip(zip(map(os.fsdecode, names), sizes, times, strict=True), digests, strict=True))
        unread = [state for state in states if state not in known]
        console = Console(stderr=True)
        with counting_bar("Comparing files of equal size", console) as bar, ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda state: _digest(root, state[0]), unread)
            read = dict(zip(unread, bar.track(found, total=len(unread)), strict=True))
        if new := {state: digest for state, digest in read.items() if digest is not None}:
            known |= new
            rows = ((os.fsencode(name), *stat, digest) for (name, *stat), digest in known.items())
            columns = zip(*rows, strict=True)
            with whole_file(file) as temporary:
                pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True))), temporary)
    return known


def _digest(root: Path, name: str) -> str | None:
    try:
        return file_digest(resolve_path(root, name))
    except (OSError, ValueError):  # also a link that leaves the root: the first stage will say so
        return None
