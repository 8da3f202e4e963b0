"""Run independent jobs, here or in a pool of processes, with a progress bar; results come in the order of the jobs.

Also what commands share that split their work by `--shard`.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")
Result = TypeVar("Result")


def counting_bar(what: str, console: Console) -> Progress:
    """A progress bar that counts items and says how long is left; silent where the console is no terminal."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str) -> list[Result]:
    """Apply a module-level function to every job.

    Args:
        function: what to do; it must depend on its argument alone, so that ``workers`` changes nothing but the time.
        jobs: arguments, picklable.
        workers: number of processes; 0 and 1 work in this one.
        title: what the progress bar says.
    """
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        if min(workers, len(jobs)) <= 1:
            return list(progress.track(map(function, jobs), total=len(jobs), description=title))
        # Spawned, because forking a process that has running threads (torch's, for one) can hang.
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(workers, len(jobs)), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            chunk = max(1, min(16, len(jobs) // (4 * workers)))
            results = pool.imap(function, jobs, chunksize=chunk)
            return list(progress.track(results, total=len(jobs), description=title))


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", with i from 1. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"A shard is i/n with 1 <= i <= n, as in 2/8, not {text!r}.")
    return part, parts
