"""Running stages on one shard, in this process: rows in, parts out, every row accounted for."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from icve.curation.part_files import PartInfo, read_info, read_part, write_part
from icve.curation.run_folder import Run
from icve.curation.stage import Outcome, Rejected, Row, Stage
from icve.curation.stage_list import StageSpec
from icve.data.media.video import VideoError
from icve.runtime.printable import as_text
from icve.runtime.storage.remote_path import RemoteError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FAILURES = ("error", "timed out", "process died")  # reasons that are nobody's decision

Watch = Callable[[int, list[str], float], None]


class StageBroken(RuntimeError):
    """A stage that cannot run at all (its model does not load, it returns nonsense): the run must end."""


@dataclass
class Casualties:
    """Rows that a killed process was at work on, by stage.

    Attributes:
        suspects: rows to be tried alone, because one of them killed the process that had them together.
        rejected: rows that did it alone, with what happened.
    """

    suspects: dict[int, set[str]] = field(default_factory=dict)
    rejected: dict[int, dict[str, Rejected]] = field(default_factory=dict)


class ShardWorker:
    """Stages of a run, built and set up once, applied to one shard after another."""

    def __init__(self, run: Run, numbers: Sequence[int]) -> None:
        self.run, self.numbers = run, list(numbers)
        self._stages: dict[int, Stage] = {}

    def work(self, shard: str, casualties: Casualties, watch: Watch) -> int:
        """Bring a shard from the part before the first of the stages to that of the last, doing only what is missing.

        Args:
            shard: its name; the part before must be valid.
            casualties: what is known of rows that killed an earlier process.
            watch: called before every batch with (stage number, keys, seconds it may take) and, when it is over, with
                (0, [], 0).

        Returns:
            rows that were worked on.

        Raises:
            StageBroken: a stage cannot run.
            OSError: a part cannot be written.
        """
        before = (
            self.first_rows(shard) if self.numbers[0] == 1 else read_info(self.run.part(self.numbers[0] - 1, shard))
        )
        worked = 0
        for number in self.numbers:
            made_from = self.run.made_from(number, shard, before)
            info = read_info(self.run.part(number, shard))
            if info is None or info.made_from != made_from or info.transient:
                # Also what this process has just made is read back: Parquet may give other types.
                rows, _ = read_part(self.run.part(number - 1, shard))
                started = time.perf_counter()
                outcomes = self._outcomes(number, rows, casualties, watch)
                seconds = time.perf_counter() - started
                worked += len(rows)
                info = write_outcomes(self.run, number, shard, made_from, rows, outcomes, seconds)
            before = info
        return worked

    def work_all(self, made_from: str, casualties: Casualties, watch: Watch) -> int:
        """Run a stage that sees all rows, and write a part for every shard; returns the number of rows."""
        (number,) = self.numbers
        shards = {shard: read_part(self.run.part(number - 1, shard))[0] for shard in self.run.shards}
        rows = [row for kept in shards.values() for row in kept]
        started = time.perf_counter()
        outcomes = iter(self._outcomes(number, rows, casualties, watch))
        seconds = (time.perf_counter() - started) / len(shards)
        for shard, kept in shards.items():
            write_outcomes(self.run, number, shard, made_from, kept, [next(outcomes) for _ in kept], seconds)
        return len(rows)

    def first_rows(self, shard: str) -> PartInfo:
        """Write the part that the first stage starts from, unless it is there."""
        file, made_from = self.run.part(0, shard), self.run.made_from(0, shard, None)
        info = read_info(file)
        if info and info.made_from == made_from and not info.transient:
            return info
        started = time.perf_counter()
        try:
            found = self.run.inputs.read(self.run.shards[shard])
        except RemoteError as error:
            raise StageBroken(str(error)) from error
        kept = [item for item in found if isinstance(item, dict)]
        rejected = [item for item in found if not isinstance(item, dict)]
        return write_part(file, made_from, {}, kept, rejected, len(kept), time.perf_counter() - started)

    def _outcomes(self, number: int, rows: list[Row], casualties: Casualties, watch: Watch) -> list[Outcome]:
        spec, lost = self.run.pipeline.stages[number - 1], casualties.rejected.get(number, {})
        outcomes: dict[str, Outcome] = {row["key"]: lost[row["key"]] for row in rows if row["key"] in lost}
        todo = [row for row in rows if row["key"] not in lost]
        for batch in _batches(todo, self._stage(spec), casualties.suspects.get(number, set())) if todo else ():
            outcomes |= zip((row["key"] for row in batch), self._call(spec, batch, watch), strict=True)
        return [outcomes[row["key"]] for row in rows]

    def _stage(self, spec: StageSpec) -> Stage:
        if spec.number not in self._stages:
            try:
                stage = spec.build()
                stage.setup()
            except Exception as error:  # whatever a library raises when a model does not load
                raise StageBroken(f"Stage {spec.number} ({spec.name}) cannot start: {error}") from error
            self._stages[spec.number] = stage
        return self._stages[spec.number]

    def _call(self, spec: StageSpec, batch: list[Row], watch: Watch) -> Sequence[Outcome]:
        stage = self._stage(spec)
        watch(spec.number, [row["key"] for row in batch], sum(stage.seconds(row) for row in batch))
        try:
            # Copies, so that a batch that is tried again is as it was.
            outcomes = list(stage([dict(row) for row in batch], self.run.workspace))
        except Exception as error:  # any row may hold what a library does not expect; one row costs no other
            # No fault of the row. Out of memory, this process ends, and the row is tried alone in a fresh one.
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in DISK_FULL):
                raise
            if isinstance(error, RemoteError):
                raise StageBroken(str(error)) from error
            return self._failed(spec, batch, error, watch)
        finally:
            watch(0, [], 0.0)
        stage_name = f"Stage {spec.number} ({spec.name})"
        if len(outcomes) != len(batch):
            counts = f"{len(outcomes)} outcomes for {len(batch)} rows"
            raise StageBroken(f"{stage_name} gave {counts}: it must give one for every row.")
        for outcome in outcomes:
            if not isinstance(outcome, dict | list | Rejected) or outcome == []:
                raise StageBroken(f"{stage_name} gave {outcome!r} for a row: give a row, rows, or Rejected.")
        return outcomes

    def _failed(self, spec: StageSpec, batch: list[Row], error: Exception, watch: Watch) -> Sequence[Outcome]:
        """What becomes of a batch that raised: its rows are tried one by one."""
        if spec.scope == "all":
            raise StageBroken(f"Stage {spec.number} ({spec.name}) failed: {describe(error)}.") from error
        if len(batch) > 1:
            return [outcome for row in batch for outcome in self._call(spec, [row], watch)]
        if isinstance(error, VideoError):
            return [Rejected("unreadable video", error.reason)]
        return [Rejected("error", describe(error))]


def write_outcomes(
    run: Run,
    number: int,
    shard: str,
    made_from: str,
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    seconds: float,
) -> PartInfo:
    """Write a shard's part of a stage; returns its metadata."""
    spec = run.pipeline.stages[number - 1]
    kept: list[Row] = []
    rejected: list[tuple[Row, Rejected]] = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if isinstance(outcome, Rejected):
            rejected.append((row, outcome))
            continue
        children = list(_children(row["key"], [outcome] if isinstance(outcome, dict) else outcome))
        if as_text(children) == children:
            kept.extend(children)
        else:  # a model's answer, for one
            rejected.append((row, Rejected("error", "the stage gave text with characters that are no text")))
    if len({row["key"] for row in kept}) != len(kept):
        raise StageBroken(f"Stage {number} ({spec.name}) gave two rows the same key.")
    provenance = {"class_path": spec.class_path, "version": spec.version, "parameters": spec.parameters}
    try:
        return write_part(
            run.part(number, shard), made_from, provenance, kept, rejected, len(rows) - len(rejected), seconds
        )
    except ValueError as error:
        raise StageBroken(f"Stage {number} ({spec.name}): {error}") from error


def describe(error: BaseException) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _children(parent: str, children: Sequence[Row]) -> Iterator[Row]:
    for number, child in enumerate(children):
        key = child.get("key") or parent
        if len(children) > 1 and key == parent:
            key = f"{parent}-{number}"
        columns = {name: _plain(value) for name, value in child.items() if name != "key" and value is not None}
        yield {"key": key, **columns}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _batches(rows: list[Row], stage: Stage, suspects: set[str]) -> Iterator[list[Row]]:
    if stage.scope == "all":
        yield rows
        return
    together = [row for row in rows if row["key"] not in suspects]
    for start in range(0, len(together), max(1, stage.batch_size)):
        yield together[start : start + max(1, stage.batch_size)]
    yield from ([row] for row in rows if row["key"] in suspects)
