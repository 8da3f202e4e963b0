"""Clip pairs of raw synthetic videos, with what the event log says of them: the last stage of the demo's curation."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

from icve.curation.clip_pairs import ClipPairs, cut_clips
from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, Workspace
from icve.synthetic.events import describe_pair, read_events


class EventPairs(ClipPairs):
    """Takes pairs of a scene's clips, in either order and at random, of which the event log can say what differs.

    Reads and adds what `ClipPairs` does, and adds ``instruction`` and ``edit_type``.

    Args:
        events: ``events.jsonl`` of the videos; a relative path starts at the folder of the videos.
        frames: frames of a clip, 4k + 1.
        fps: rate at which clips will be read.
        margin: frames of the file to stay away from both ends of a scene.
        pairs_per_scene: most pairs of a scene.
        seed: selects other pairs and other words.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        events: str,
        frames: int,
        fps: float | None = 24.0,
        margin: int = 2,
        pairs_per_scene: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(frames, fps, margin, pairs_per_scene=pairs_per_scene, seed=seed)
        self.events = events
        self._logs: dict[str, Any] | None = None

    def outcome(self, row: Row, work: Workspace) -> list[Row] | Rejected:
        if self._logs is None:
            self._logs = read_events(Path(work.input, self.events))
        (seconds,) = read_signals(work, row, "seconds")
        start, end = row["scene_start"] + self.margin, row["scene_end"] - self.margin
        pairs = list(permutations(cut_clips(seconds, start, end, self.frames, self.fps), 2))
        if not pairs:
            return Rejected("scene too short", f"{row['scene_end'] - row['scene_start']} frames hold no two clips")
        path = work.name(work.video(row))
        found: list[Row] = []
        for number in self.random(row, self.seed).permutation(len(pairs)):
            source, target = pairs[number]
            description = describe_pair(self._logs, row["video"], source, target, self.seed)
            if description is not None:
                found.append(row | self._columns(row["fps"], seconds, path, source, target) | description)
            if len(found) == self.pairs_per_scene:
                break
        return found or Rejected("nothing to say", f"no instruction leads from one of {len(pairs)} pairs to the other")
