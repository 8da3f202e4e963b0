"""Paired edits with masks and reference pictures as files: MP4 videos, masks, PNG pictures and a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icve.data.manifest import write_manifest
from icve.runtime.process_pools import run_jobs
from icve.synthetic.condition_pairs import KINDS, make_condition_pair, write_picture
from icve.synthetic.pair_files import Job, make_jobs, write_files


def synthesize_conditions(
    output: str | Path,
    count: int,
    split: str = "test",
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = ((64, 64),),
    frames: int = 9,
    fps: float = 8.0,
    workers: int = 1,
) -> Path:
    """Write ``count`` edits of twins under a mask and of insertions from a picture, by turns; returns their manifest.

    Writes ``sources/``, ``targets/``, ``masks/``, ``references/`` and, in split "test", ``distractors/`` (of a
    reference's pair the first is the edit of ``swapped_reference_path``); last ``manifest.parquet``. Arguments, files
    that exist and errors are as in :func:`icve.synthetic.pair_files.synthesize_pairs`.
    """
    jobs = make_jobs(Path(output), count, split, seed, sizes, len(KINDS), frames, fps)
    (Path(output) / "references").mkdir(parents=True, exist_ok=True)
    rows = run_jobs(_write, jobs, workers, f"Writing {count} {split} pairs with conditions")
    return write_manifest(rows, Path(output, "manifest.parquet"))


def _write(job: Job) -> dict[str, Any]:
    name, out = job.name, job.output
    pair = make_condition_pair(job.split, job.seed, job.index, job.height, job.width, job.frames)
    videos = {f"sources/{name}.mp4": pair.source, f"targets/{name}.mp4": pair.target}
    clips = pair.distractors if job.split == "test" else ()
    wrong = {f"distractors/{name}-{n}.mp4": clip for n, clip in enumerate(clips)}
    row = write_files(job, videos, wrong, pair.mask, pair.instruction, pair.edit.edit_type) | {
        "condition": pair.kind,
        "distractor_paths": list(wrong) or None,
        "reference_path": None,
        "swapped_reference_path": None,
    }
    for role, picture in (("reference", pair.reference), ("swapped_reference", pair.swapped)):
        if picture is not None:
            row[f"{role}_path"] = path = f"references/{name}-{role}.png"
            write_picture(str(out / path), picture)
    return row
