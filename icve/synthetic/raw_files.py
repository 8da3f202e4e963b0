"""Raw videos as files: MP4 videos and the log of what happens in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icve.data.media.video import write_video
from icve.runtime.atomic import write_text
from icve.runtime.process_pools import run_jobs
from icve.synthetic.pair_files import CRF, Job, make_jobs
from icve.synthetic.paired_clips import scene_seed
from icve.synthetic.raw import plan_raw_video, render_raw_video, scene_log


def synthesize_raw(
    output: str | Path,
    count: int,
    split: str = "test",
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = ((64, 64),),
    frames: int = 9,
    fps: float = 8.0,
    workers: int = 1,
) -> Path:
    """Write ``count`` raw videos of 10 to 25 scenes and the log of their events; return the log's path.

    Writes ``videos/*.mp4`` and last ``events.jsonl`` (see ``events.py``), one line per video. Video number i depends
    on the other arguments alone: not on ``count`` or ``workers``. Files that exist are kept, so an interrupted run
    goes on. Held-out combinations occur in neither split.

    Args:
        output: folder, created if need be.
        count: number of videos, at least 1.
        split: "train" or "test"; they share no scene.
        seed: selects another set of videos.
        sizes: (height, width) in pixels, multiples of 16, that the videos have in turn.
        frames: length of the clips to be cut from the videos; every scene has room for one before and one after each
            change (for 9 frames, scenes are 30 to 48 frames long).
        fps: frame rate of the files.
        workers: processes to use.

    Raises:
        ValueError: an argument is out of range.
    """
    jobs = make_jobs(Path(output), count, split, seed, sizes, 1, frames, fps)
    logs = run_jobs(_write_video, jobs, workers, f"Writing {count} raw videos")
    return write_text(Path(output, "events.jsonl"), "".join(json.dumps(log) + "\n" for log in logs))


def _write_video(job: Job) -> dict[str, Any]:
    name = f"videos/{job.name}.mp4"
    scenes = plan_raw_video(job.split, job.seed, job.index, job.height, job.width, job.frames)
    if not (job.output / name).exists():
        write_video(job.output / name, render_raw_video(scenes), job.fps, crf=CRF)
    log = scene_log(scenes)
    return {
        "video": name,
        "frames": log[-1]["end"],
        "fps": float(job.fps),
        "width": job.width,
        "height": job.height,
        "scene_seed": scene_seed("raw", job.split, job.seed, job.index),
        "scenes": log,
    }
