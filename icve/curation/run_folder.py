"""A curation run and its folder: where parts lie, which of them are valid, and what they add up to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icve.curation.part_files import PartInfo, read_info
from icve.curation.raw_videos import Inputs
from icve.curation.stage import Workspace
from icve.curation.stage_list import Pipeline, StageSpec
from icve.data.identity import json_digest
from icve.runtime.atomic import write_text

RUN_FILE = "run.json"
INPUTS = "00-inputs"  # folder of the parts with the first rows

Survey = list[dict[str, PartInfo]]  # valid parts by shard: of the first rows, then of every stage


@dataclass(frozen=True)
class Run:
    """What is worked on: a pipeline, its inputs cut into shards, and the folder for all results.

    Attributes:
        pipeline: the stages.
        inputs: all inputs.
        output: the run's folder, absolute.
        shards: names of inputs by shard.
    """

    pipeline: Pipeline
    inputs: Inputs
    output: Path
    shards: dict[str, list[str]]

    @property
    def workspace(self) -> Workspace:
        root = self.inputs.root if self.pipeline.root == "input" else self.output
        return Workspace(self.inputs.root, self.output, root)

    def part(self, number: int, shard: str) -> Path:
        """File of a shard's part of stage `number`; 0 is the part of its first rows."""
        folder = self.pipeline.stages[number - 1].folder if number else INPUTS
        return self.output / "stages" / folder / f"{shard}.parquet"

    def made_from(self, number: int, shard: str, before: PartInfo | None) -> str:
        """What a shard's part is made from: its inputs, or the part `before` it and the stage."""
        if before is None:
            return json_digest([str(self.inputs.root), self.inputs.state(self.shards[shard])])
        return json_digest([before.chain, self.pipeline.stages[number - 1].identity])

    def made_from_all(self, number: int, before: dict[str, PartInfo]) -> str:
        """What the parts of a stage that sees all rows are made from."""
        chains = [[shard, before[shard].chain] for shard in self.shards]
        return json_digest([chains, self.pipeline.stages[number - 1].identity])

    def survey(self, last: int | None = None) -> Survey:
        """Valid parts up to stage `last` (None: all): those that were made from what lies before them now."""
        found: Survey = [{}]
        for shard in self.shards:
            info = read_info(self.part(0, shard))
            if info and info.made_from == self.made_from(0, shard, None):
                found[0][shard] = info
        for stage in self.pipeline.stages[:last]:
            before, number = found[-1], stage.number
            found.append({})
            joined = stage.scope == "all"
            if joined and len(before) < len(self.shards):
                continue
            expected = self.made_from_all(number, before) if joined else ""
            for shard, info_before in before.items():
                info = read_info(self.part(number, shard))
                if info and info.made_from == (expected or self.made_from(number, shard, info_before)):
                    found[-1][shard] = info
        return found

    def save(self) -> None:
        """Write `run.json`, from which `icve curate status` and `preview` know the run."""
        stages = [{**asdict(stage), "name": stage.name, "folder": stage.folder} for stage in self.pipeline.stages]
        description = {
            "pipeline": {"root": self.pipeline.root, "shard_size": self.pipeline.shard_size},
            "stages": stages,
            "input": str(self.inputs.root),
            "output": str(self.output),
            "root": str(self.workspace.root),
            "shards": self.shards,
            "left_out": self.inputs.left_out,
        }
        write_text(self.output / RUN_FILE, json.dumps(description) + "\n")


@dataclass(frozen=True)
class StageCount:
    """Counts of one stage over the finished shards. `rows_in` = `passed` + the sum of `rejected`."""

    name: str
    shards: int
    rows_in: int
    passed: int
    rows_out: int
    rejected: dict[str, int]
    transient: int
    seconds: float


def count_stages(stages: Sequence[StageSpec], survey: Survey) -> list[StageCount]:
    """Counts of every stage, the first rows ("inputs") among them."""
    counts = []
    for name, parts in zip(["inputs", *(stage.name for stage in stages)], survey, strict=True):
        rejected: Counter[str] = Counter()
        for info in parts.values():
            rejected.update(info.rejected)
        sums = {
            field: sum(getattr(info, field) for info in parts.values())
            for field in ("rows_in", "passed", "rows_out", "transient", "seconds")
        }
        counts.append(StageCount(name=name, shards=len(parts), rejected=dict(rejected.most_common()), **sums))
    return counts


def funnel_text(counts: Sequence[StageCount], shards: int) -> str:
    """The funnel as a table: what went into every stage, came out, and was rejected for what reason."""
    lines = [f"{'stage':<22}{'shards':>11}{'in':>9}{'passed':>9}{'rejected':>9}{'out':>9}{'seconds':>10}  rejected for"]
    for count in counts:
        done = f"{count.shards}/{shards}"
        rejected = sum(count.rejected.values())
        reasons = ", ".join(f"{reason} {number}" for reason, number in count.rejected.items())
        again = f" ({count.transient} to be tried again by the next run)" if count.transient else ""
        lines.append(
            f"{count.name:<22}{done:>11}{count.rows_in:>9}{count.passed:>9}{rejected:>9}{count.rows_out:>9}"
            f"{count.seconds:>10.1f}  {reasons}{again}".rstrip()
        )
    return "\n".join(lines)


def load_description(output: Path) -> dict[str, Any]:
    """What `Run.save` wrote.

    Raises:
        FileNotFoundError: the folder is no curation run.
    """
    file = output / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"There is no curation run in {output}: it has no {RUN_FILE}.")
    return json.loads(file.read_text(encoding="utf-8"))
