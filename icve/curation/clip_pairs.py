"""Unpaired clips for pretraining: raw videos → scenes → clips → pairs of clips of one scene with an instruction."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from icve.curation.scenes import detect_scenes
from icve.data.manifest import relative_path, write_manifest
from icve.data.video import VideoError, VideoInfo, probe
from icve.jobs import run_jobs

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"})

Clip = tuple[int, int]  # frames [start, end) of a video
Annotation = Mapping[str, Any] | str | None  # columns with "instruction" among them, or the instruction alone

_REJECTED = pa.schema(
    [
        ("stage", pa.string()),
        ("source_path", pa.string()),
        ("source_start", pa.int64()),
        ("source_frames", pa.int64()),
        ("target_start", pa.int64()),
        ("target_frames", pa.int64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class ClipPairs:
    """What ``clip_pairs`` wrote and counted.

    ``videos`` = videos read + ``rejected["video"]``; ``scenes`` of the videos read = scenes with at least two clips +
    ``rejected["scene"]``; pairs tried = ``pairs`` + ``rejected["pair"]``.
    """

    manifest: Path
    rejections: Path
    videos: int
    scenes: int
    pairs: int
    rejected: dict[str, int]


def clip_pairs(
    videos: str | Path | Iterable[str | Path],
    output: str | Path,
    frames: int,
    fps: float | None,
    annotate: Callable[[Path, Clip, Clip], Annotation],
    pairs_per_scene: int = 4,
    margin: int = 2,
    seed: int = 0,
    workers: int = 1,
) -> ClipPairs:
    """Make a manifest of clip pairs: two clips of one scene each, and what differs between them.

    Every scene is cut into as many clips of ``frames`` frames as fit without overlapping, spread evenly. Pairs of
    them, in both orders, are annotated in random order until ``pairs_per_scene`` have an instruction. Which pairs a
    scene gives depends on the seed and its own video only. Nothing is re-encoded: rows hold frame ranges.

    Writes ``manifest.parquet`` (paths relative to the videos' folder) and ``rejected.parquet`` (stage "video", "scene"
    or "pair", and the reason).

    Args:
        videos: a folder, searched for video files with all its subfolders, or the files themselves.
        output: folder to write to.
        frames: frames per clip, at ``fps``.
        fps: frame rate the clips will be read at; None takes each file's own.
        annotate: called with (video, clip A, clip B), clips as frame ranges [start, end) of the file; gives the
            instruction that leads from A to B, alone or as a mapping with further columns, or None to reject the pair.
        pairs_per_scene: most pairs taken from one scene.
        margin: frames of the file to stay away from both ends of a scene, since cuts smear in compressed videos.
        seed: selects other pairs.
        workers: processes for scene detection.

    Raises:
        FileNotFoundError: the folder or a file does not exist.
        ValueError: there is no video, an argument is out of range, or not one pair came out.
    """
    if frames < 1 or pairs_per_scene < 1 or margin < 0 or (fps is not None and not fps > 0):
        raise ValueError("frames and pairs_per_scene must be at least 1, margin at least 0 and fps above 0.")
    root, files = _video_files(videos)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    found = run_jobs(_detect, files, workers, f"Finding scenes in {len(files)} videos")

    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    scene_count = 0
    for file, (info, scenes, failure) in zip(files, found, strict=True):
        path = relative_path(file, root)
        if failure is not None:
            rejected.append({"stage": "video", "source_path": path, "reason": failure})
            continue
        span = frames if fps is None else math.ceil((frames - 1) * info.fps / fps - 1e-6) + 1
        scene_count += len(scenes)
        for start, end in scenes:
            clips = _clips(start + margin, end - margin, span)
            if len(clips) < 2:
                reason = f"{end - start} frames are too few for two clips of {span} and margins of {margin}"
                place = {"source_path": path, "source_start": start, "source_frames": end - start}
                rejected.append({"stage": "scene", **place, "reason": reason})
                continue
            taken = 0
            for a, b in _shuffled_pairs(clips, seed, path, start):
                if taken == pairs_per_scene:
                    break
                row = _row(path, a, b, info)
                annotation = annotate(file, a, b)
                if annotation is None:
                    reason = "no instruction says what differs"
                    place = {name: row[name] for name in _REJECTED.names if name in row}
                    rejected.append({"stage": "pair", **place, "reason": reason})
                    continue
                columns = {"instruction": annotation} if isinstance(annotation, str) else annotation
                rows.append({**row, "scene_start": start, "scene_end": end, **columns})
                taken += 1

    rejections = output / "rejected.parquet"
    partial = rejections.with_name(f".{rejections.name}.{os.getpid()}.partial")
    pq.write_table(pa.Table.from_pylist(rejected, schema=_REJECTED), partial)
    os.replace(partial, rejections)
    if not rows:
        raise ValueError(f"No clip pair came out of {len(files)} videos; {rejections} says why.")
    manifest = write_manifest(rows, output / "manifest.parquet", root=root)
    counts = {stage: sum(row["stage"] == stage for row in rejected) for stage in ("video", "scene", "pair")}
    return ClipPairs(manifest, rejections, len(files), scene_count, len(rows), counts)


def _video_files(videos: str | Path | Iterable[str | Path]) -> tuple[Path, list[Path]]:
    """The folder that manifest paths are relative to, and the files in a fixed order."""
    if isinstance(videos, (str, Path)):
        root = Path(videos)
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder {root}; give a folder of videos.")
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
        if not files:
            raise ValueError(f"There is no video in {root}; known are {', '.join(sorted(VIDEO_SUFFIXES))}.")
        return root, files
    files = [Path(video) for video in videos]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"There is no video {file}.")
    if not files:
        raise ValueError("No videos were given.")
    return Path(os.path.commonpath([file.absolute().parent for file in files])), files


def _detect(file: Path) -> tuple[VideoInfo | None, list[Clip], str | None]:
    """(info, scenes, None), or (None, [], reason) for a file that cannot be used."""
    try:
        return probe(file), detect_scenes(file), None
    except VideoError as error:
        return None, [], error.reason


def _clips(start: int, end: int, span: int) -> list[Clip]:
    """As many clips of ``span`` frames as fit into [start, end), evenly spread."""
    count = (end - start) // span
    if count < 1:
        return []
    starts = np.round(np.linspace(start, end - span, count)).astype(int)
    return [(int(first), int(first) + span) for first in starts]


def _shuffled_pairs(clips: list[Clip], seed: int, path: str, start: int) -> list[tuple[Clip, Clip]]:
    pairs = list(permutations(clips, 2))
    digest = hashlib.blake2b(f"{seed}/{path}/{start}".encode(), digest_size=8).digest()
    order = np.random.default_rng(int.from_bytes(digest, "little")).permutation(len(pairs))
    return [pairs[i] for i in order]


def _row(path: str, a: Clip, b: Clip, info: VideoInfo) -> dict[str, Any]:
    return {
        "source_path": path,
        "source_start": a[0],
        "source_frames": a[1] - a[0],
        "target_path": path,
        "target_start": b[0],
        "target_frames": b[1] - b[0],
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
    }
