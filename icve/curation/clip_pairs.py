"""Two clips of one scene: what the first training stage takes for an edit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from icve.curation.clip_length import check_clip_length
from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, RowStage, Workspace
from icve.data.frame_choice import FrameChoice, SlowClips, average_rate, is_slow
from icve.data.media.video import sample_indices

Clip = tuple[int, int]  # frames [start, end) of the file


class ClipPairs(RowStage):
    """Cuts a scene into clips that do not overlap and takes two of them at random, in random order (ICVE, clip pairs).

    Nothing is re-encoded: a clip is a range of the file's frames that gives ``frames`` frames at ``fps`` when it is
    sampled by timestamp, as training does.

    Reads ``video``, ``signals``, ``scene_start``, ``scene_end`` and ``fps``. Adds ``source_path``, ``source_start``,
    ``source_frames`` and the same of the target. Where a file's rate varies, ``fps`` becomes that of the slower clip.
    No sample of a clip shows a frame twice.

    Args:
        frames: frames of a clip, 4k + 1.
        fps: rate at which clips will be read; None takes each file's own frames.
        margin: frames of the file to stay away from both ends of a scene, since cuts smear in compressed videos.
        min_gap: least time between the two clips, in seconds.
        max_gap: most, in seconds; None allows any.
        pairs_per_scene: most pairs of a scene; no two are of the same two clips.
        seed: selects other pairs.
        slow_clips: "own_rate" takes clips slower than ``fps`` frame by frame, "drop" leaves them out.
    """

    def __init__(
        self,
        frames: int,
        fps: float | None = 24.0,
        margin: int = 2,
        min_gap: float = 0.0,
        max_gap: float | None = None,
        pairs_per_scene: int = 1,
        seed: int = 0,
        slow_clips: SlowClips = "own_rate",
    ) -> None:
        self.choice = FrameChoice(fps, slow_clips)
        if pairs_per_scene < 1 or margin < 0 or (fps is not None and not fps > 0):
            raise ValueError("pairs_per_scene must be at least 1, margin at least 0 and fps above 0.")
        if min_gap < 0 or (max_gap is not None and max_gap < min_gap):
            raise ValueError(f"0 <= min_gap <= max_gap is wanted, not {min_gap} and {max_gap}.")
        self.frames, self.fps, self.margin = check_clip_length(frames), fps, margin
        self.min_gap, self.max_gap = min_gap, np.inf if max_gap is None else max_gap
        self.pairs_per_scene, self.seed = pairs_per_scene, seed

    def outcome(self, row: Row, work: Workspace) -> list[Row] | Rejected:
        (seconds,) = read_signals(work, row, "seconds")
        start, end = row["scene_start"] + self.margin, row["scene_end"] - self.margin
        cut = cut_clips(seconds, start, end, self.frames, self.fps)
        clips = [
            clip for clip in cut if self.frames == 1 or not self.choice.refuses(average_rate(seconds[slice(*clip)]))
        ]
        if len(clips) < 2 <= len(cut):
            slow = f"{len(cut) - len(clips)} of {len(cut)} clips are slower than {self.fps:g} fps"
            return Rejected("slow video", f"{slow}: slow_clips own_rate would take them at their own rate")
        if len(clips) < 2:
            rate = "" if self.fps is None else f" at {self.fps:g} fps"
            detail = f"{row['scene_end'] - row['scene_start']} frames hold {len(clips)} of two clips"
            return Rejected("scene too short", f"{detail} of {self.frames}{rate}")
        first, second = np.triu_indices(len(clips), 1)
        starts, ends = seconds[[clip[0] for clip in clips]], seconds[[clip[1] - 1 for clip in clips]]
        gap = starts[second] - ends[first]
        allowed = np.flatnonzero((gap >= self.min_gap) & (gap <= self.max_gap))
        if not len(allowed):
            wanted = f"{self.min_gap:g} to {self.max_gap:g} s"
            return Rejected("no pair of clips", f"no two of {len(clips)} clips are {wanted} apart")
        random = self.random(row, self.seed)
        chosen = random.permutation(allowed)[: self.pairs_per_scene]
        path = work.name(work.input / row["video"])
        pairs = []
        for number in chosen:
            source, target = (clips[i] for i in random.permutation([first[number], second[number]]))
            pairs.append(row | self._columns(row["fps"], seconds, path, source, target))
        return pairs

    def _columns(self, fps: float, seconds: np.ndarray, path: str, source: Clip, target: Clip) -> Row:
        lengths = source[1] - source[0], target[1] - target[0]
        if self.fps is not None and self.frames > 1:
            slower = min(average_rate(seconds[slice(*clip)]) for clip in (source, target))
            fps = slower if is_slow(slower, fps) or is_slow(fps, slower) else fps
            # What a manifest's reader takes for the clip's length without opening the file: frames / fps.
            fps = min(fps, (min(lengths) - 1) * self.fps / (self.frames - 1))
        return {
            "source_path": path,
            "source_start": source[0],
            "source_frames": lengths[0],
            "target_path": path,
            "target_start": target[0],
            "target_frames": lengths[1],
            "fps": fps,
        }


def cut_clips(seconds: np.ndarray, start: int, end: int, frames: int, fps: float | None) -> list[Clip]:
    """As many clips as fit into frames [start, end) one after the other, spread evenly where time is left over.

    Args:
        seconds: times of all frames of the file, (F,), ascending.
        start, end: the range.
        frames: frames of a clip when sampled at ``fps``, or of the file where that is None.
        fps: sampling rate.
    """
    clips: list[Clip] = []
    while (clip := _clip(seconds, clips[-1][1] if clips else start, end, frames, fps)) is not None:
        clips.append(clip)
    if len(clips) < 2:
        return clips
    # In a file of variable rate a clip that starts later may be longer: then they stay where they were.
    late = np.linspace(0, end - clips[-1][1], len(clips)).astype(int)
    moved = (_clip(seconds, clip[0] + int(by), end, frames, fps) for clip, by in zip(clips, late, strict=True))
    spread = [clip for clip in moved if clip is not None]
    apart = len(spread) == len(clips) and all(a[1] <= b[0] for a, b in pairwise(spread))
    return spread if apart else clips


def _clip(seconds: np.ndarray, start: int, end: int, frames: int, fps: float | None) -> Clip | None:
    """The shortest clip from a frame on, or None where it ends behind ``end``."""
    if start >= end:
        return None
    if fps is None:
        last = start + frames - 1
    else:
        # The clip must last as long as its samples do: a last frame that is merely nearest to the last sample's time
        # would leave a clip that ends before it. Timestamps are rounded to a millisecond in Matroska.
        last = int(np.searchsorted(seconds, seconds[start] + (frames - 1) / fps - 9e-4))
        last = max(last, start + frames - 1)  # no frame is shown twice
        while last < end and len(sample_indices(seconds[: last + 1], fps, start, frames)) < frames:
            last += 1
    return (start, last + 1) if last < end else None
