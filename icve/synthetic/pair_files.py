"""Paired edits as files: MP4 videos or PNG pictures, masks and a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icve.data.manifest import write_manifest
from icve.data.masks import save_mask
from icve.data.media.still_picture import PictureWriter
from icve.data.media.video import write_video
from icve.runtime.process_pools import run_jobs
from icve.synthetic.hard_pairs import HARD_SPLITS, make_hard_pair
from icve.synthetic.paired_clips import SPLITS, TURNS, WORLD, make_pair
from icve.synthetic.vocabulary import EDIT_TYPES

CRF = 12  # of the written videos: artefacts well below the pictures' grain


@dataclass(frozen=True)
class Job:
    """One pair, or one raw video, to write."""

    output: Path
    split: str
    seed: int
    index: int
    height: int
    width: int
    frames: int
    fps: float

    @property
    def name(self) -> str:
        """File name without suffix. It stands for all the content depends on: a file that exists is the right one."""
        turn = TURNS.get(self.split, EDIT_TYPES)
        content = (WORLD, turn, self.split, self.seed, self.index, self.height, self.width, self.frames, self.fps)
        return f"{self.index:06d}-{hashlib.blake2b(repr(content).encode(), digest_size=5).hexdigest()}"


def make_jobs(
    output: Path,
    count: int,
    split: str,
    seed: int,
    sizes: Sequence[tuple[int, int]],
    turn: int,
    frames: int,
    fps: float,
    splits: Sequence[str] = SPLITS,
) -> list[Job]:
    """The jobs of a synthesize function, which documents the arguments; every size is used ``turn`` times in a row.

    Raises:
        ValueError: an argument is out of range.
    """
    if split not in splits:
        raise ValueError(f"The split must be {', '.join(splits[:-1])} or {splits[-1]}, not {split!r}.")
    if count < 1:
        raise ValueError(f"The count must be at least 1, not {count}.")
    for height, width in sizes:
        if height < 32 or width < 32 or height % 16 or width % 16:
            raise ValueError(f"Height and width must be multiples of 16 and at least 32, not {height}x{width}.")
        if not 0.5 <= width / height <= 2.0:
            raise ValueError(f"One side must be at most twice the other, not {height}x{width}: objects would not fit.")
    if frames < 1:
        raise ValueError(f"A clip needs at least 1 frame, not {frames}.")
    if not fps > 0:
        raise ValueError(f"The frame rate must be above 0, not {fps}.")
    shapes = [sizes[index // turn % len(sizes)] for index in range(count)]
    return [Job(output, split, seed, index, *shape, frames, fps) for index, shape in enumerate(shapes)]


def synthesize_pairs(
    output: str | Path,
    count: int,
    split: str | Sequence[str] = "test",
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = ((64, 64),),
    frames: int | None = None,
    fps: float = 8.0,
    workers: int = 1,
) -> Path:
    """Write ``count`` paired edits, the edit types in turn (``pairs.TURNS``), and return the path of their manifest.

    Writes ``sources/``, ``targets/``, ``masks/`` (``masks.load_mask`` reads them), ``distractors/`` with the targets of
    four wrong instructions per pair (not in split "train"), and last ``manifest.parquet``. Pair number i depends on the
    other arguments alone: not on ``count`` or ``workers``. Files that exist are kept, so an interrupted run goes on.

    Args:
        output: folder, created if need be.
        count: number of pairs of every split, at least 1.
        split: "train", "test" or one that is harder than "test" (`hard_pairs.HARD_SPLITS`), or several. "train" shares
            no scene with the others, nor held-out wordings and combinations.
        seed: selects another set of pairs.
        sizes: (height, width) in pixels, multiples of 16; all pairs of one turn of the edit types have one size.
        frames: frames per clip, at least 1 (codecs want 4k + 1); clips of one are PNG pictures, without a rate. None
            is what suits the split: 33 for "long", else 9.
        fps: frame rate of the files.
        workers: processes to use.

    Raises:
        ValueError: an argument is out of range.
    """
    jobs: list[Job] = []
    for name in [split] if isinstance(split, str) else dict.fromkeys(split):
        hard = HARD_SPLITS.get(name)
        length = frames if frames is not None else hard.frames if hard else 9
        if hard and length < hard.least_frames:
            raise ValueError(f"Split {name} needs clips of at least {hard.least_frames} frames, not {length}.")
        turn = len(TURNS.get(name, EDIT_TYPES))
        jobs += make_jobs(Path(output), count, name, seed, sizes, turn, length, fps, (*SPLITS, *HARD_SPLITS))
    rows = run_jobs(_write_pair, jobs, workers, f"Writing {len(jobs)} pairs")
    return write_manifest(rows, Path(output, "manifest.parquet"))


def write_files(
    job: Job,
    videos: Mapping[str, np.ndarray],
    wrong: Mapping[str, np.ndarray],
    mask: np.ndarray,
    instruction: str,
    edit_type: str,
) -> dict[str, Any]:
    """Write what is missing of a pair's files, and return the first columns of its row.

    Args:
        job: the pair.
        videos, wrong: source and target, and targets of wrong instructions, uint8 (F, H, W, 3) by path; PNG or MP4.
        mask: bool (F, H, W).
        instruction, edit_type: of the row.
    """
    for path, frames in {**videos, **wrong}.items():
        if (job.output / path).exists():
            continue
        if path.endswith(".png"):
            with PictureWriter(job.output / path) as writer:
                writer.write(frames)
        else:
            write_video(job.output / path, frames, job.fps, crf=CRF)
    mask_path = f"masks/{job.name}.npz"
    if not (job.output / mask_path).exists():
        save_mask(job.output / mask_path, mask)
    row: dict[str, Any] = {}
    for role, path in zip(("source", "target"), videos, strict=True):
        row |= {f"{role}_path": path, f"{role}_start": 0, f"{role}_frames": job.frames}
    return row | {
        "width": job.width,
        "height": job.height,
        "fps": None if path.endswith(".png") else float(job.fps),
        "instruction": instruction,
        "edit_type": edit_type,
        "mask_path": mask_path,
        "split": job.split,
    }


def _write_pair(job: Job) -> dict[str, Any]:
    make = make_pair if job.split in SPLITS else make_hard_pair
    pair = make(job.split, job.seed, job.index, job.height, job.width, job.frames)
    name = f"{job.name}.png" if job.frames == 1 else f"{job.name}.mp4"
    videos = {f"sources/{name}": pair.source, f"targets/{name}": pair.target}
    wrong = {f"distractors/{job.name}-{n}{name[-4:]}": frames for n, frames in enumerate(pair.distractors)}
    edit = asdict(pair.edit)
    edit.pop("edit_type")
    row = write_files(job, videos, wrong, pair.mask, pair.instruction, pair.edit_type) | {
        "scene_seed": pair.scene_seed,
        "template": pair.template,
        "held_out_template": "/test/" in pair.template,
        "held_out_combination": pair.edit.is_held_out,
        "changed": float(pair.mask.mean()),
        "objects": [" ".join(reversed(obj.look)) for obj in pair.scene.objects],
        "background": pair.scene.background,
        **{"new_background" if name == "background" else name: value for name, value in edit.items()},
    }
    if wrong:
        row |= {"distractor_paths": list(wrong), "distractor_instructions": list(pair.distractor_instructions)}
    return row
