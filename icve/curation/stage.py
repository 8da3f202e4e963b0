"""What a curation pipeline is made of: stages, each a class that turns rows into rows or rejects them with a reason.

A stage is one file and one entry in a pipeline's YAML. It knows nothing of shards, processes, resuming or files of
rows: the runner (`icve.curation.runner`) calls it with a batch of rows and writes down what became of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from icve.data.manifest import relative_path, resolve_path

Row = dict[str, Any]  # values that Parquet holds: numbers, strings, booleans, and lists of these


@dataclass(frozen=True)
class Rejected:
    """A row that goes no further.

    Attributes:
        reason: in a few words, the same for every row rejected for it ("too dark"): the funnel counts by it.
        detail: what was measured and what was allowed ("mean luma 12.3, at least 24 wanted").
        transient: the cause may be gone next time (an endpoint was down), so a rerun tries the row again.
    """

    reason: str
    detail: str = ""
    transient: bool = False


Outcome = Row | list[Row] | Rejected


@dataclass(frozen=True)
class Workspace:
    """Folders of a run.

    Attributes:
        input: what the `video` column is relative to.
        output: the run's own folder; stages write files (clips, masks, signals) into folders of their own in it.
        root: what `source_path`, `target_path` and `mask_path` are relative to, and with them the final manifest:
            `input` where clips are frame ranges of the raw videos, `output` where the pipeline writes videos itself.
    """

    input: Path
    output: Path
    root: Path

    def video(self, row: Row) -> Path:
        """The raw video of a row. Raises ManifestError if its path leaves the input folder, also through a link."""
        return resolve_path(self.input, row["video"])

    def file(self, row: Row, column: str) -> Path:
        """The file that one of a row's `*_path` columns names. Raises ManifestError if it leaves the root."""
        return resolve_path(self.root, row[column])

    def name(self, file: Path) -> str:
        """How a file stands in a `*_path` column. Raises ManifestError outside the root."""
        return relative_path(file, self.root)


class Stage(ABC):
    """One step of a pipeline. Its constructor's typed parameters are its options in YAML.

    The constructor is called in every process, also where the stage never runs: it checks its parameters and that the
    paths it was given exist, and nothing more. `setup` loads what takes time or memory.

    Class attributes:
        version: raise it when the same parameters give other results, so that earlier results are redone.
        needs: "gpu" stages run in as many processes as there are devices, each with one of them; where there is none,
            in one process on the CPU. "cpu" stages run in all workers.
        scope: "rows" for a stage that sees a batch of rows at a time; "all" for one that must see every row of the run
            at once (balancing, merging), which starts when all shards have come that far.
        batch_size: most rows in one call ("rows" only).
        incidental: parameters that change no result (batch size, number of connections), which therefore invalidate
            nothing.
    """

    version: ClassVar[int] = 1
    needs: Literal["cpu", "gpu"] = "cpu"  # of a stage that asks a model, what that needs
    scope: ClassVar[Literal["rows", "all"]] = "rows"
    batch_size: int = 1
    incidental: ClassVar[frozenset[str]] = frozenset()

    def setup(self) -> None:  # noqa: B027 - most stages have nothing to load
        """Load models; called once in a process that runs the stage, before its first batch. An error ends the run."""

    def seconds(self, row: Row) -> float:
        """Most seconds the row may take: beyond, the process is killed and the row rejected."""
        return 120.0

    @abstractmethod
    def __call__(self, rows: list[Row], work: Workspace) -> Sequence[Outcome]:
        """What becomes of each row, in the order of the rows.

        A row that goes on (with columns added), several rows that it was cut into, or `Rejected`. Columns the stage
        does not know are carried along. Every row has a `key`, unique in the run and stable over reruns, which names
        the files a stage writes for it and seeds its random choices (`Stage.random`); the runner gives rows that one
        row was cut into keys of their own.

        A `VideoError` rejects the row as "unreadable video", any other exception as "error" with the exception as the
        detail; when a batch of several rows raises, its rows are tried again one by one.
        """

    @staticmethod
    def random(row: Row, seed: int = 0) -> np.random.Generator:
        """Random numbers that depend on the row's key and the seed alone."""
        return np.random.default_rng([seed, *row["key"].encode()])


class RowStage(Stage):
    """A stage that decides on every row by itself."""

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self.outcome(row, work) for row in rows]

    @abstractmethod
    def outcome(self, row: Row, work: Workspace) -> Outcome:
        """What becomes of a row: see `Stage.__call__`."""
