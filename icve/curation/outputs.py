"""The folders a user takes away from a finished run: `manifest/` and `rejected/`, Parquet both."""

from __future__ import annotations

from pathlib import Path

from icve.curation.part_files import read_part
from icve.curation.run_folder import INPUTS, Run, Survey
from icve.curation.stage import Row
from icve.data.manifest import write_part

INTERNAL = ("key",)  # columns that mean nothing outside the run


def write_outputs(run: Run, survey: Survey) -> Path:
    """Write the final rows and all rejected ones, a part per shard, and remove parts of shards that are no more.

    Rejected rows have `stage`, `reason` and `detail`, and the columns they had when they were rejected.

    Returns:
        the manifest's folder.
    """
    manifest, rejections = run.output / "manifest", run.output / "rejected"
    names = [INPUTS, *(stage.folder for stage in run.pipeline.stages)]
    written: set[Path] = set()
    for shard in survey[-1]:
        kept, _ = read_part(run.part(len(names) - 1, shard))
        rejected = [
            {"stage": name.partition("-")[2], "reason": why.reason, "detail": why.detail, **_public(row)}
            for number, name in enumerate(names)
            for row, why in read_part(run.part(number, shard))[1]
        ]
        if kept:
            written.add(write_part([_public(row) for row in kept], manifest, shard, run.workspace.root))
        if rejected:
            written.add(write_part(rejected, rejections, shard, run.workspace.root))
    for folder in (manifest, rejections):
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("part-*.parquet"):
            if part not in written:
                part.unlink()
    return manifest


def _public(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in INTERNAL}
