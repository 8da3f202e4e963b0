"""Executes a pipeline: shard by shard in watched processes, resumable, with every row accounted for.

Stages that follow each other on the CPU run in one process per shard; each GPU stage runs alone, in one process per
device, so that one model is in memory at a time; a stage that must see all rows waits for all shards. What is finished
lies in `OUTPUT/stages`, one Parquet part per stage and shard, and is never redone unless what it was made from changed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from icve.curation.copies import mark_copies
from icve.curation.outputs import write_outputs
from icve.curation.raw_videos import Inputs, assign_shards
from icve.curation.run_folder import Run, StageCount, count_stages
from icve.curation.stage_list import Pipeline, StageSpec
from icve.curation.supervisor import Supervisor
from icve.curation.work import FAILURES, ShardWorker


@dataclass(frozen=True)
class Phase:
    """Stages that one process runs on a shard before the next shard."""

    numbers: tuple[int, ...]
    needs: Literal["cpu", "gpu"]
    scope: Literal["rows", "all"]


@dataclass(frozen=True)
class CurationResult:
    """What a run came to.

    Attributes:
        counts: of every stage, over all shards finished so far.
        shards: how many there are.
        manifest: the folder of the final manifest; None while parts of other processes are missing.
        rows: in the manifest.
        failures: rows rejected for no decision of a stage (errors, time limits, dead processes, causes that may pass).
    """

    counts: list[StageCount]
    shards: int
    manifest: Path | None
    rows: int
    failures: int


Execute = Callable[[Run, Phase, Sequence[str], Callable[[int], None]], None]


def phases(pipeline: Pipeline) -> list[Phase]:
    """How the stages are grouped."""

    def group_of(stage: StageSpec) -> tuple:
        # A GPU stage is a group of its own, and so is one that sees all rows.
        return stage.needs, stage.scope, 0 if (stage.needs, stage.scope) == ("cpu", "rows") else stage.number

    found = []
    for (needs, scope, _), group in groupby(pipeline.stages, key=group_of):
        found.append(Phase(tuple(stage.number for stage in group), needs, scope))
    return found


def run_pipeline(
    pipeline: Pipeline,
    inputs: Inputs,
    output: str | Path,
    execute: Execute,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> CurationResult:
    """Run a pipeline, or what is left of it.

    Args:
        pipeline, inputs: what to do with what.
        output: the run's folder.
        execute: brings shards through a phase: `LocalRunner` or `icve.curation.ray_runner.RayRunner`.
        limit: use the first inputs only.
        share: (i, n): this process takes every n-th shard from the i-th on, others take the rest.

    Raises:
        icve.curation.work.StageBroken: a stage cannot run; what is finished stays.
        OSError: the folder cannot be written.
    """
    output = Path(output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    shards = assign_shards(output / "shards.parquet", inputs, limit, pipeline.shard_size)
    working_on = [name for names in shards.values() for name in names]
    inputs = mark_copies(output / "digests.parquet", inputs, working_on)
    run = Run(pipeline, inputs, output, shards)
    run.save()
    survey = run.survey()
    if len(survey[-1]) < len(shards) or any(info.transient for parts in survey for info in parts.values()):
        _work(run, [shard for number, shard in enumerate(shards) if number % share[1] == share[0]], execute)
        survey = run.survey()
    complete = len(survey[-1]) == len(shards)
    manifest = write_outputs(run, survey) if complete else None
    counts = count_stages(pipeline.stages, survey)
    failures = sum(sum(count.rejected.get(reason, 0) for reason in FAILURES) + count.transient for count in counts)
    return CurationResult(counts, len(shards), manifest, counts[-1].rows_out, failures)


def _work(run: Run, shards: Sequence[str], execute: Execute) -> None:
    """Bring shards through all phases, or as far as shards of other processes allow."""
    if run.pipeline.stages[0].scope == "all":
        for shard in shards:
            ShardWorker(run, [1]).first_rows(shard)
    for phase in phases(run.pipeline):
        if phase.scope == "rows":
            with _progress(run, phase, len(shards)) as advance:
                execute(run, phase, shards, advance)
        elif not _run_all(run, phase):
            break


def _run_all(run: Run, phase: Phase) -> bool:
    """Run a stage that sees all rows; False if shards of other processes are not there yet."""
    (number,) = phase.numbers
    survey = run.survey(number)
    if len(survey[-2]) < len(run.shards):
        return False
    done = survey[-1]
    if len(done) == len(run.shards) and not any(info.transient for info in done.values()):
        return True
    supervisor = Supervisor(run, phase.numbers)
    try:
        supervisor.work("work_all", run.made_from_all(number, survey[-2]))
    finally:
        supervisor.stop()
    return True


class LocalRunner:
    """A pool of watched processes on this machine.

    Args:
        workers: processes for CPU stages.
        devices: of GPU stages, one process each, as `CUDA_VISIBLE_DEVICES` names them; none: one process on the CPU.
    """

    def __init__(self, workers: int, devices: Sequence[str] = ()) -> None:
        self.workers, self.devices = max(1, workers), list(devices)

    def __call__(self, run: Run, phase: Phase, shards: Sequence[str], advance: Callable[[int], None]) -> None:
        """Bring shards through a phase; `advance` is told the rows of each that is finished."""
        environments: list[dict[str, str]]
        if phase.needs == "gpu" and self.devices:
            environments = [{"CUDA_VISIBLE_DEVICES": device} for device in self.devices]
        else:
            count = 1 if phase.needs == "gpu" else min(self.workers, len(shards))
            threads = max(1, (os.cpu_count() or 1) // max(1, count))
            environments = [{"OMP_NUM_THREADS": str(threads)}] * count
        waiting = iter(list(shards))  # of a list: threads may share it
        supervisors = [Supervisor(run, phase.numbers, environment) for environment in environments]
        with ThreadPoolExecutor(max(1, len(supervisors))) as pool:
            futures = [pool.submit(_work_on, waiting, supervisor, advance) for supervisor in supervisors]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also on Ctrl-C: threads wait for processes, which must go first
                for supervisor, future in zip(supervisors, futures, strict=True):
                    if not future.done():
                        supervisor.stop()
        for error in sorted((e for f in futures if (e := f.exception())), key=lambda e: type(e).__name__ == "Stopped"):
            raise error


def _work_on(waiting: Iterator[str], supervisor: Supervisor, advance: Callable[[int], None]) -> None:
    """Bring shards through a phase, one after the other, until another thread has taken the last."""
    try:
        for shard in waiting:
            advance(supervisor.work("work", shard))
    finally:
        supervisor.stop()


@contextmanager
def _progress(run: Run, phase: Phase, shards: int) -> Iterator[Callable[[int], None]]:
    """A bar over a phase's shards with rows/s and time left; one line at the end where there is no terminal."""
    names = [run.pipeline.stages[number - 1].name for number in phase.numbers]
    title = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    console, lock, started = Console(stderr=True), threading.Lock(), time.monotonic()
    rows = 0
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("shards, {task.fields[rate]}")
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()

    def rate() -> str:
        return f"{rows / max(1e-3, time.monotonic() - started):.1f} rows/s"

    def advance(finished: int) -> None:
        nonlocal rows
        with lock:
            rows += finished
        bar.update(task, advance=1, rate=rate())

    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=shards, rate="")
        yield advance
    if rows and not console.is_terminal:
        console.print(f"{title}: {shards} shards, {rate()}", highlight=False)


def visible_devices(count: int) -> list[str]:
    """Names of the first `count` devices, as `CUDA_VISIBLE_DEVICES` has them where it is set."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:count]
