"""Where one take ends and the next begins: hard cuts, and the gradual transitions that cut detectors do not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, SceneDetector

from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, RowStage, Workspace

Span = tuple[int, int]  # frames [start, end)

_LENGTHS = np.geomspace(0.2, 2.0, 9)  # seconds over which transitions are looked for; longer ones are found in parts
_LEAST_LENGTH = 4  # frames
_LARGEST_STEP = 0.4  # share of a transition that may happen between two frames: more is a cut
_INVISIBLE = 0.1  # share of a transition before which, and before whose end, it is not visible
_LEAST_SHARE = 0.4  # of a transition that one blend must span; two do where it goes through black
_BLOCK = 2048  # frames compared at a time


class Segments(RowStage):
    """Cuts a video into scenes without a transition inside (ICVE, clip pairs: scene detection).

    Hard cuts are found by PySceneDetect's adaptive and content detectors, which here are given the scores that were
    measured instead of frames. Fades and cross-fades, which neither finds, are stretches over which every picture is a
    blend of the first and the last (:func:`transitions`); their frames belong to no scene.

    Reads ``signals``. Gives one row per scene with ``scene_start`` and ``scene_end``, frames [start, end) of the file.

    Args:
        adaptive_threshold: how many times as much as around it a frame must change for a cut.
        min_content: how much it must change at least, 0..255.
        content_threshold: change that is a cut whatever is around it, 0..255.
        min_frames: shortest scene; PySceneDetect's default of 15 misses shorter ones.
        min_blend: evidence wanted for a gradual transition, see :func:`transitions`.
        margin: frames left out before and after a gradual transition besides its own.
    """

    def __init__(
        self,
        adaptive_threshold: float = 3.0,
        min_content: float = 15.0,
        content_threshold: float = 45.0,
        min_frames: int = 3,
        min_blend: float = 10.0,
        margin: int = 2,
    ) -> None:
        if min(adaptive_threshold, min_content, content_threshold, min_blend) <= 0:
            raise ValueError("All thresholds must be positive.")
        if min_frames < 1 or margin < 0:
            raise ValueError("min_frames must be at least 1 and margin at least 0.")
        self.adaptive_threshold, self.min_content = adaptive_threshold, min_content
        self.content_threshold, self.min_frames = content_threshold, min_frames
        self.min_blend, self.margin = min_blend, margin

    def seconds(self, row: Row) -> float:
        return 60.0 + row["frames"] * 0.03

    def outcome(self, row: Row, work: Workspace) -> list[Row] | Rejected:
        seconds, change, mosaic = read_signals(work, row, "seconds", "change", "mosaic")
        cuts = self._hard_cuts(change)
        blends = transitions(mosaic, (len(seconds) - 1) / seconds[-1], self.min_blend)
        found = scenes(len(change), cuts, blends, self.margin, self.min_frames)
        if not found:
            return Rejected(
                "no scene", f"{len(cuts)} cuts and {len(blends)} transitions leave no {self.min_frames} frames"
            )
        return [row | {"scene_start": start, "scene_end": end} for start, end in found]

    def _hard_cuts(self, change: np.ndarray) -> list[int]:
        """First frames of new scenes."""
        detectors = (
            AdaptiveDetector(self.adaptive_threshold, self.min_frames, min_content_val=self.min_content),
            ContentDetector(self.content_threshold, self.min_frames),
        )
        return sorted({cut for detector in detectors for cut in _replay(detector, change)})


def scenes(frames: int, cuts: Sequence[int], blends: Sequence[Span], margin: int, min_frames: int) -> list[Span]:
    """What lies between hard cuts and outside of gradual transitions, widened by a margin, if it is long enough."""
    widened = [(start - margin, end + margin) for start, end in blends]
    edges = [(cut, cut) for cut in cuts if not any(start <= cut <= end for start, end in widened)]
    found, start = [], 0
    for edge, after in [*sorted(widened + edges), (frames, frames)]:
        if edge - start >= min_frames:
            found.append((start, edge))
        start = max(start, after)
    return found


def transitions(mosaic: np.ndarray, fps: float, min_blend: float = 10.0) -> list[Span]:
    """Gradual transitions: cross-fades, and fades to and from a plain picture, which together are one.

    While a picture A is blended into B, every picture between lies on the straight line from A to B and further along
    it than the one before, with the motion in A and B as a residual. Motion in one take has no such line: halfway
    between its ends, things are at a third place instead of half at either.

    Args:
        mosaic: small pictures of all frames, (F, h, w, 3) uint8; so small that little of the motion is left in them.
        fps: their average rate.
        min_blend: how much the mean difference of A and B (0..255) must at least exceed twice the mean distance of
            any picture between from the line, for a transition of no time; twice as much for one of a second, since
            what moves in one take changes the picture the more, the longer one waits.

    Returns:
        Frames [start, end) that are affected, ascending and disjoint.
    """
    pictures = mosaic.reshape(len(mosaic), -1)
    lengths = {max(_LEAST_LENGTH, round(length * fps)) for length in _LENGTHS}
    longest = np.zeros(len(pictures), int)  # of the blends that a frame is in
    for length in sorted(lengths):
        least = min_blend * (1 + length / fps)
        for start in _straight(pictures, length, least):
            blend = _blended(pictures[start : start + length + 1].astype(np.float32), least)
            if blend is not None:
                span = slice(start + blend[0], start + blend[1])
                longest[span] = np.maximum(longest[span], blend[1] - blend[0])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], longest > 0, [False]]).astype(np.int8)))
    spans = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
    # A pan over a smooth view looks like a blend for a moment, again and again: but not from its beginning to its end.
    return [(start, end) for start, end in spans if longest[start:end].max() >= _LEAST_SHARE * (end - start)]


def _straight(pictures: np.ndarray, length: int, least: float) -> list[int]:
    """First frames of windows whose ends differ and whose middle is about halfway between: where to look closer."""
    found: list[int] = []
    for first in range(0, len(pictures) - length, _BLOCK):
        count = min(_BLOCK, len(pictures) - length - first)
        a, middle, b = (
            pictures[first + offset : first + offset + count].astype(np.int16) for offset in (0, length // 2, length)
        )
        blend = np.abs(b - a).mean(1, dtype=np.float32)
        # Half a blend away on either side: a fast middle is still allowed
        bend = np.abs(2 * middle - a - b).mean(1, dtype=np.float32) / 2
        found += (first + np.flatnonzero((blend >= least) & (bend <= blend / 2))).tolist()
    return found


def _blended(window: np.ndarray, least: float) -> Span | None:
    """Frames [start, end) of a window (n, D) between which its first picture becomes its last, if by blending."""
    a, towards = window[0], window[-1] - window[0]
    share = (window - a) @ towards / (towards @ towards)
    residual = np.abs(window - a - share[:, None] * towards).mean(1).max()
    if np.abs(towards).mean() - 2 * residual < least or np.abs(np.diff(share)).max() > _LARGEST_STEP:
        return None
    # From the middle outwards: motion in A or B looks like a little of the other now and then.
    half = int((share >= 0.5).argmax())
    first = np.flatnonzero(share[:half] <= _INVISIBLE)[-1] + 1
    last = np.flatnonzero(share[half:] >= 1 - _INVISIBLE)[0] + half
    return int(first), int(last)


def _replay(detector: SceneDetector, scores: np.ndarray) -> list[int]:
    """What a detector of PySceneDetect finds in frames that it would have given these scores."""
    detector._calculate_frame_score = lambda timecode, frame: float(scores[timecode.frame_num])
    cuts = []
    for number in range(len(scores)):
        cuts += detector.process_frame(FrameTimecode(number, fps=1.0), None)
    return [cut.frame_num for cut in cuts]
