"""The demo on a user's own videos: clip pairs and paired edits made from them, beside the synthetic ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from icve.cli.demo.resumable import CannotRun, ResumableTasks, digest
from icve.curation import runner
from icve.curation.raw_videos import Inputs, find_inputs
from icve.curation.run_folder import funnel_text
from icve.curation.runner import CurationResult
from icve.curation.stage_list import load_pipeline
from icve.data.buckets import Bucket
from icve.data.frame_choice import FrameChoice
from icve.data.manifest import Row, read_manifest, relative_path, write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import VideoError, read_frames, write_video
from icve.data.media.video_folders import left_out_text
from icve.data.pair_reading import load_pair
from icve.data.paired_edits import read_edit
from icve.data.selection import select
from icve.data.unpaired_clips import read_clips
from icve.evaluation.report import Example
from icve.runtime.atomic import write_text
from icve.runtime.printable import json_lines

KINDS = {"clips": ("clip_pairs_demo.yaml", read_clips), "pairs": ("edit_pairs_offline.yaml", read_edit)}
MOST_SHOWN = 12  # edits kept back from training and shown in the report
_LARGER = 3  # edits are made at so many times the demo's size: masks need pixels
_CRF = 12
_CARRIED = ("instruction", "edit_type", "video")


def find_own(videos: str | Path) -> Inputs:
    """A user's videos; what else is in their folder is printed. Raises CannotRun where there are none."""
    try:
        inputs = find_inputs(videos)
    except (OSError, ValueError) as error:
        raise CannotRun(str(error)) from error
    if inputs.left_out:
        print(f"{inputs.root}: {left_out_text(inputs.left_out)}", file=sys.stderr)
    return inputs


def add_own_videos(
    stages: ResumableTasks,
    data: Path,
    sources: Mapping[str, Path],
    inputs: Inputs,
    settings: Mapping[str, Any],
    workers: int,
) -> dict[str, Path]:
    """Curate a user's videos into ``data/own`` and mix them into each stage's data.

    Args:
        stages: the demo's, which these become part of.
        data: the demo's folder of data.
        sources: folder of each training stage's own data, clips first.
        inputs: the videos.
        settings: ``sizes``, ``frames``, ``fps`` and ``seed`` of `curate_own`.
        workers: processes.

    Returns:
        the folders that the stages train from instead.
    """
    own = data / "own"
    key = stages.run(
        "curate_own",
        f"clip pairs and paired edits of {len(inputs.names)} of your videos",
        own,
        {**settings, "videos": [str(inputs.root), inputs.state(inputs.names)]},
        lambda folder: curate_own(inputs, folder, **settings, workers=workers),
    )
    mixed = {}
    for (stage, made), kind in zip(sources.items(), KINDS, strict=True):
        mixed[stage] = data / f"{kind}_mixed"
        stages.run(
            f"mix_{kind}",
            f"your {kind} among the synthetic ones",
            mixed[stage],
            {"own": key, "made": digest(made / "train.parquet")},
            partial(mix, own, made, kind, root=data),
        )
    return mixed


def run_curation(name: str, inputs: Inputs, folder: Path, workers: int, **variables: Any) -> CurationResult:
    """Run a pipeline that ships with the package, its variables set, and print how many rows every stage left."""
    pipeline = load_pipeline(name, [f"{variable}={value}" for variable, value in variables.items()])
    result = runner.run_pipeline(pipeline, inputs, folder, runner.LocalRunner(workers))
    print(funnel_text(result.counts, result.shards), flush=True)
    return result


def curate_own(
    inputs: Inputs, folder: Path, sizes: Sequence[tuple[int, int]], frames: int, fps: float, seed: int, workers: int
) -> None:
    """Run both pipelines on a folder of videos and write what training takes from them.

    Writes ``clips.parquet`` and ``pairs.parquet`` to train on, ``held_out.parquet`` (edits of clips that no pair
    to train on is made of), each only if it has rows, and all clips as small videos at the demo's size and rate.

    Args:
        inputs: the videos.
        folder: written to.
        sizes: (height, width) in pixels, a bucket each.
        frames: of a clip, 4k + 1.
        fps: frame rate of the clips.
        seed: of the pipelines.
        workers: processes.
    """
    for kind, (name, read) in KINDS.items():
        variables: dict[str, Any] = {"frames": frames, "fps": fps, "seed": seed}
        if kind == "pairs":
            variables["sizes"] = [[_LARGER * height, _LARGER * width] for height, width in sizes]
            variables["max_ratio"] = 1000  # nothing is left out: there is little enough
        if not run_curation(name, inputs, folder / kind, workers, **variables).rows:
            print(f"  no {kind} came out of {inputs.root}: the table says why", flush=True)
            continue
        rows = _shrink(folder, kind, read, [Bucket(*size, frames) for size in sizes], fps)
        shown = _hold_back(rows) if kind == "pairs" else set()
        for name, part in ((kind, False), ("held_out", True)):
            if chosen := [row for row in rows if (row["clip"] in shown) == part]:
                write_manifest(chosen, folder / f"{name}.parquet")


def mix(own: Path, made: Path, kind: str, output: Path, root: Path) -> None:
    """Write ``train.parquet`` (made and own rows) and ``validation.parquet`` (made ones), paths relative to ``root``.

    Args:
        own: folder of `curate_own`.
        made: folder with the demo's own ``train.parquet`` and ``validation.parquet``.
        kind: "clips" or "pairs".
        output: written to.
        root: holds the files of both.
    """
    parts = {"train": [made / "train.parquet"], "validation": [made / "validation.parquet"]}
    if (own / f"{kind}.parquet").is_file():
        parts["train"].append(own / f"{kind}.parquet")
    for name, files in parts.items():
        manifests = [read_manifest(file) for file in files]
        rows = [_rebased(row, manifest.root, root) for manifest in manifests for row in manifest]
        write_manifest(rows, output / f"{name}.parquet", root=root)


def edit_own(run: Path, manifest: Path, folder: Path, fps: float, seed: int) -> None:
    """Edit the clips that were kept back with a run's last checkpoint: ``edits/ID.mp4`` and ``edits.jsonl``."""
    import torch

    from icve.editing.editors import load_editor
    from icve.evaluation.synthetic import clip_to_tensor, decode_clip, noise_generator, tensor_to_clips

    editor = load_editor(run)
    editor.set_progress_bar_config(disable=True)
    held_out = read_manifest(manifest)
    lines = []
    for row in held_out:
        source = decode_clip(row, "source", held_out.root)
        noise = [noise_generator(seed, row["id"])]
        with torch.inference_mode():
            edited = editor(clip_to_tensor([source]), [row["instruction"]], generator=noise)
        path = f"edits/{row['id']}.mp4"
        write_video(folder / path, tensor_to_clips(edited.video)[0], fps, crf=_CRF)
        lines.append(json.dumps({"id": row["id"], "result_path": path}) + "\n")
    write_text(folder / "edits.jsonl", "".join(lines))


def own_examples(manifest: Path, folder: Path) -> list[Example]:
    """The edits of `edit_own` for the report; the target is what image processing made of the source."""
    from icve.evaluation.synthetic import decode_clip

    held_out = read_manifest(manifest)
    results = [json.loads(line)["result_path"] for line in json_lines(folder / "edits.jsonl")]
    examples = []
    for row, result in zip(held_out, results, strict=True):
        source, target = (decode_clip(row, role, held_out.root) for role in ("source", "target"))
        clips = {"source": source, "edited": read_frames(folder / result), "target": target}
        facts = {"video": row["video"]}
        examples.append(Example(row["instruction"], f"yours: {row['edit_type']}", clips, None, facts, row.get("fps")))
    return examples


def _shrink(folder: Path, kind: str, read: Any, buckets: list[Bucket], fps: float) -> list[Row]:
    """Clips as training sees them, written as small files; rows of what could be read."""
    manifest = read_manifest(folder / kind / "manifest")
    described = {row["id"]: row for row in manifest}
    # Written at this rate, slower clips would move too fast.
    choice = FrameChoice(fps, "drop")
    selection = select(manifest, buckets, fps, slow_clips=choice.slow_clips)
    rows: list[Row] = []
    left_out = list(selection.dropped)
    for pair in selection.pairs:
        bucket, row = buckets[pair.bucket], described[pair.id]
        try:
            sample = load_pair(pair, manifest.root, bucket, read, choice)
        except VideoError as error:
            left_out.append((pair.id, str(error)))
            continue
        files = {f"{role}_path": folder / "files" / f"{kind}-{pair.id}-{role}.mp4" for role in ("source", "target")}
        for column, file in files.items():
            frames = sample[column.removesuffix("_path")].permute(1, 2, 3, 0).numpy()
            write_video(file, np.ascontiguousarray(frames), fps, crf=_CRF)
        if "mask" in sample:
            files["mask_path"] = folder / "files" / f"{kind}-{pair.id}-mask.npz"
            save_mask(files["mask_path"], sample["mask"][0].numpy())
        written: Row = {column: relative_path(file, folder) for column, file in files.items()}
        written |= {f"{role}_frames": bucket.frames for role in ("source", "target")}
        written |= {"width": bucket.width, "height": bucket.height, "fps": float(fps)}
        written["clip"] = f"{row['video']}/{row.get('clip_start', row['source_start'])}"
        rows.append(written | {name: row.get(name) for name in _CARRIED})
    for identity, reason in left_out:
        print(f"  {kind} {identity} left out: {reason}", flush=True)
    return rows


def _hold_back(rows: Sequence[Row]) -> set[str]:
    """Clips whose edits are shown instead of trained on: the last ones, at most a quarter of the edits."""
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    most = min(MOST_SHOWN, len(rows) // 4)
    held: set[str] = set()
    for clip in reversed(clips):
        if sum(row["clip"] in held | {clip} for row in rows) > most and held:
            break
        held.add(clip)
    return held if len(held) < len(clips) else set()


def _rebased(row: Row, old: Path, new: Path) -> Row:
    paths = {name: relative_path(old / row[name], new) for name in row if name.endswith("_path") and row[name]}
    return {**row, **paths}
