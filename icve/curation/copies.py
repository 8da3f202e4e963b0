"""Copies: videos that are an earlier one under another name, and are not curated again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from icve.curation.raw_videos import Inputs
from icve.data.identity import file_digest
from icve.data.manifest import resolve_path
from icve.runtime.atomic import whole_file
from icve.runtime.locks import locked
from icve.runtime.printable import is_text
from icve.runtime.process_pools import counting_bar
from icve.runtime.storage.files import open_file

_READERS = 16  # threads: reading files is mostly waiting
_COLUMNS = ("input", "size", "modified", "digest")

State = tuple[str, int, int]  # name, size in bytes, time of change in nanoseconds


def mark_copies(file: Path, inputs: Inputs, names: Sequence[str]) -> Inputs:
    """The same inputs with their ``copies``: names of files that have the content of an earlier one, the first such.

    Of files of equal size at most 1 MiB each is read (`icve.data.identity.file_digest`), and only those that agree in
    it are read whole: a copy is one byte for byte. What was read is remembered in ``file`` and one beside it, so that
    all processes of a run, and its reruns, read it once. Empty files, files that cannot be read and rows of a manifest
    are nobody's copy.

    Args:
        file: Parquet of digests.
        inputs: of the run.
        names: what is worked on, in the order in which the first of equal files stays.

    Raises:
        OSError: ``file`` or the one beside it cannot be written.
    """
    # Files whose names are no text go no further, so that none of them must be the one that stays.
    names = sorted(names, key=lambda name: not is_text(name))
    alike = [] if inputs.rows is not None else _of_equal_size(inputs, names)
    samples = _digests(file, inputs.root, alike, file_digest, "Comparing files of equal size")
    suspects = [state for group in _equal(alike, samples) for state in group]
    whole = file.with_stem(f"{file.stem}_whole")
    contents = _digests(whole, inputs.root, suspects, content_digest, "Reading suspected copies whole")
    copies = {other: first for (first, *_), *others in _equal(suspects, contents) for other, *_ in others}
    return replace(inputs, copies=copies)


def content_digest(file: Path) -> str:
    """Digest of all bytes of a file. Raises OSError."""
    with open_file(file) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _of_equal_size(inputs: Inputs, names: Sequence[str]) -> list[State]:
    states: list[State] = []
    for name in names:
        with contextlib.suppress(OSError):
            states.append((name, *inputs.state_of(name)))
    counts = Counter(size for _, size, _ in states)
    return [state for state in states if state[1] and counts[state[1]] > 1]


def _equal(states: Sequence[State], digests: Mapping[State, str]) -> list[list[State]]:
    """Files that share their digest with another one, together; groups and files in the order they came."""
    groups: defaultdict[str, list[State]] = defaultdict(list)
    for state in states:
        if state in digests:
            groups[digests[state]].append(state)
    return [group for group in groups.values() if len(group) > 1]


def _digests(
    file: Path, root: Path, states: Sequence[State], digest_of: Callable[[Path], str], title: str
) -> dict[State, str]:
    """Digests of files, of those that can be read; ``file`` remembers them. Raises OSError where it cannot be written.

    Args:
        file: Parquet of digests by this ``digest_of``.
        root: that the names are relative to.
        states: whose digests are wanted.
        digest_of: reads a file.
        title: what the progress bar says.
    """
    if not states:
        return {}
    with locked(file.with_suffix(".lock")):
        known = _remembered(file)
        unread = [state for state in states if state not in known]
        console = Console(stderr=True)
        with counting_bar(title, console) as bar, ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda state: _digest(root, state[0], digest_of), unread)
            read = dict(zip(unread, bar.track(found, total=len(unread)), strict=True))
        if new := {state: digest for state, digest in read.items() if digest is not None}:
            known |= new
            _remember(file, known)
    return known


def _remembered(file: Path) -> dict[State, str]:
    if not file.is_file():
        return {}
    names, sizes, times, digests = (pq.read_table(file)[column].to_pylist() for column in _COLUMNS)
    return dict(zip(zip(map(os.fsdecode, names), sizes, times, strict=True), digests, strict=True))


def _remember(file: Path, digests: Mapping[State, str]) -> None:
    rows = ((os.fsencode(name), *stat, digest) for (name, *stat), digest in digests.items())
    columns = zip(*rows, strict=True)
    with whole_file(file) as temporary:
        pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True))), temporary)


def _digest(root: Path, name: str, digest_of: Callable[[Path], str]) -> str | None:
    try:
        return digest_of(resolve_path(root, name))
    except (OSError, ValueError):  # also a link that leaves the root: the first stage will say so
        return None
