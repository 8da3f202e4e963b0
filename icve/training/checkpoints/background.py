"""Processes that write into one folder agree through files: threads beside the training have no collectives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_WRITING, _WRITTEN, _FAILED = ".writing-{}", ".written-{}", ".failed-{}"
_REACHED = ".reached-{}"
_PATIENCE = 3600.0  # seconds for the slowest process
_PATIENCE_AT_END = 60.0  # seconds for it when the run has failed, perhaps because that process is gone


class AnotherFailed(OSError):
    """Another process, which knows why, could not write."""


def announce(folder: Path, processes: int) -> None:
    """Create a mark for each rank that is going to write into a folder. One rank calls this before the others begin."""
    for rank in range(processes):
        (folder / _WRITING.format(rank)).touch()


def hand_over(folder: Path, rank: int, write: Callable[[], Any]) -> None:
    """Call `write` and store its result (JSON) in this rank's mark, for the rank that waits.

    A failure is reported by renaming the mark, because a full disk has room for a new name but not for a new file.
    """
    mark = folder / _WRITING.format(rank)
    try:
        mark.write_text(json.dumps(write()), encoding="utf-8")
    except BaseException:
        mark.rename(folder / _FAILED.format(rank))
        raise
    mark.rename(folder / _WRITTEN.format(rank))


def exchange(folder: Path, rank: int, processes: int, value: Any, run_failed: threading.Event) -> list[Any]:
    """Give all processes a value (JSON), inside `hand_over`; returns everybody's, by rank, once all have come so far.

    Raises:
        OSError: one of them could not write, or is not ready in time.
    """
    part = folder / f".reaching-{rank}"
    part.write_text(json.dumps(value), encoding="utf-8")
    part.rename(folder / _REACHED.format(rank))
    wait_for_all(folder, processes, run_failed, (_REACHED, _FAILED))
    _raise_failure(folder, processes)
    return [json.loads((folder / _REACHED.format(other)).read_text(encoding="utf-8")) for other in range(processes)]


def wait_for_all(
    folder: Path, processes: int, run_failed: threading.Event, marks: Iterable[str] = (_WRITTEN, _FAILED)
) -> None:
    """Wait until no process writes into the folder any longer, whether it could or not; or for other marks of it.

    Raises:
        OSError: one of them is not ready in time; there is little of it once the run has failed.
    """
    end = time.monotonic() + _PATIENCE
    for rank in range(processes):
        while not any((folder / mark.format(rank)).exists() for mark in marks):
            if run_failed.is_set():
                end = min(end, time.monotonic() + _PATIENCE_AT_END)
            if time.monotonic() > end or not folder.is_dir():
                raise OSError(f"process {rank} has not written its part in time")
            time.sleep(0.05)


def collect(folder: Path, processes: int) -> list[Any]:
    """What each process handed over, by rank; after `wait_for_all`.

    Raises:
        OSError: one of them could not write.
    """
    _raise_failure(folder, processes)
    results = []
    for rank in range(processes):
        mark = folder / _WRITTEN.format(rank)
        results.append(json.loads(mark.read_text(encoding="utf-8")))
        mark.unlink()
        (folder / _REACHED.format(rank)).unlink(missing_ok=True)
    return results


def _raise_failure(folder: Path, processes: int) -> None:
    for rank in range(processes):
        if (folder / _FAILED.format(rank)).exists():
            raise AnotherFailed(f"process {rank} could not write")
