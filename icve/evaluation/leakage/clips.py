"""The clips of a manifest or a folder, and the hashes of each: frames sampled in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from icve.curation.raw_videos import find_inputs
from icve.data.manifest import resolve_path
from icve.data.media.video import read_frames, timestamps
from icve.evaluation.leakage.frame_hashes import SIDE, hash_frames

LEAST_SAMPLES = 8  # of a clip, where it has as many frames
_BLOCK = 256  # frames held at once


@dataclass(frozen=True)
class Clip:
    """Frames of a video: from ``start`` on, ``count`` or to the end; ``file`` is a path or a URL."""

    file: Path
    start: int = 0
    count: int | None = None


@dataclass(frozen=True)
class Clips:
    """What there is to compare: clips, each once, and a sentence for everything that is none."""

    clips: list[Clip]
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a clip: ``words`` uint64 (F, 2) and their ``times`` in seconds from its start, float32 (F,).

    Frames were looked at every ``step`` seconds.
    """

    words: np.ndarray
    times: np.ndarray
    step: float


def find_clips(path: str) -> Clips:
    """All videos of a folder, one video, or the source and target clips of a manifest; also behind URLs.

    Raises FileNotFoundError or ValueError, as :func:`icve.curation.raw_videos.find_inputs` does.
    """
    inputs = find_inputs(path)
    if inputs.rows is None:
        return Clips([Clip(inputs.root / name) for name in inputs.names])
    found: dict[Clip, None] = {}
    broken = [f"{key}: {why.detail}" for key, why in inputs.rejected.items()]
    for key, row in inputs.rows.items():
        roles = [role for role in ("source", "target") if row.get(f"{role}_path")]
        if not roles and key not in inputs.rejected:
            broken.append(f"{key}: the row has no source_path and no target_path.")
        for role in roles if key not in inputs.rejected else ():
            try:
                file = resolve_path(inputs.root, row[f"{role}_path"])
            except (OSError, ValueError) as error:
                broken.append(f"{key}: {error}")
            else:
                found[Clip(file, row.get(f"{role}_start") or 0, row.get(f"{role}_frames"))] = None
    return Clips(list(found), broken)


def fingerprint(clip: Clip, every: float) -> Fingerprint:
    """Hash a frame of a clip every so many seconds, more often where that gives too few. Raises VideoError."""
    seconds = timestamps(clip.file)[clip.start :]
    seconds = seconds[: clip.count]
    if not len(seconds):
        seconds = np.zeros(1)  # no such frame, which reading it will say
    chosen, step = sample(seconds, every)
    parts = [hash_frames(block) for block in _blocks(clip, chosen)]
    words, usable = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    times = seconds[chosen] - seconds[0]
    return Fingerprint(words[usable], times[usable].astype(np.float32), step)


def sample(seconds: np.ndarray, every: float) -> tuple[np.ndarray, float]:
    """Numbers of frames, of which ``seconds`` (F,) are the times, to look at, and how many seconds lie between them."""
    times = seconds - seconds[0]
    duration = float(times[-1]) + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    step = max(min(every, duration / LEAST_SAMPLES), 1e-3)
    wanted = np.searchsorted(times, np.arange(0, max(duration, step), step) + 1e-3, "right") - 1
    return np.unique(np.clip(wanted, 0, len(times) - 1)), step


def _blocks(clip: Clip, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(chosen), _BLOCK):
        numbers = clip.start + chosen[first : first + _BLOCK]
        yield read_frames(clip.file, numbers, size=(SIDE, SIDE), shape=(SIDE, SIDE))
