"""Which test clips are copies of training clips, by their hashes.

Frames are found by *multi-index hashing* (Norouzi et al., 2012): a hash is cut into eight parts of 16 bits; frames
that agree in a part but for one bit are looked up in a table and compared whole. Of a copy some frames are found so,
and tell which clip, and how far shifted in time, to compare frame by frame.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from icve.evaluation.leakage.clips import Clip, Fingerprint
from icve.evaluation.leakage.frame_hashes import BITS, differing_bits
from icve.evaluation.leakage.hashing import Hashes

FRAME_BITS = 34  # most bits in which the hashes of a frame and of its copy differ
LEAST_SCORE = 0.7  # of a match: 19 bits differ on average over the frames compared
STILL_SCORE = 0.75  # the same where a clip has too few frames to agree in time
LEAST_FRAMES = 3  # that must match
LEAST_SHARE = 0.5  # of the shorter clip that must match

_PARTS = 8
_FLIPS = np.array([0, *(1 << bit for bit in range(16))], np.uint16)
_BLOCK = 2_000_000  # frames in a table at once
_SHIFT = 0.1  # seconds to which shifts in time are rounded
_MOST_SHIFTS = 32  # tried of a pair of clips


@dataclass(frozen=True)
class Match:
    """A test clip that is, or shares ``seconds`` with, a training clip.

    ``test_seconds`` and ``train_seconds`` are where the matching part begins in the clips; ``score`` is 1 for equal
    hashes and 0 for unrelated ones.
    """

    test: Clip
    train: Clip
    test_seconds: float
    train_seconds: float
    seconds: float
    score: float


class FrameTable:
    """Hashes, uint64 (M, 2), to be looked up."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words
        parts = np.ascontiguousarray(words).view(np.uint16).reshape(-1, _PARTS)
        self.order = [np.argsort(parts[:, part], kind="stable").astype(np.uint32) for part in range(_PARTS)]
        counts = (np.bincount(parts[:, part], minlength=1 << 16) for part in range(_PARTS))
        self.first = np.stack([np.concatenate([[0], np.cumsum(count)]) for count in counts])

    def near(self, word: np.ndarray) -> np.ndarray:
        """Numbers of the frames that differ from a hash (2,) in at most ``FRAME_BITS``, of those found; ascending."""
        keys = np.ascontiguousarray(word).view(np.uint16)[:, None] ^ _FLIPS
        which = np.arange(_PARTS)[:, None]
        starts, ends = self.first[which, keys].ravel(), self.first[which, keys.astype(np.int64) + 1].ravel()
        filled = np.flatnonzero(ends > starts)
        ranges = [self.order[place // len(_FLIPS)][starts[place] : ends[place]] for place in filled]
        found = np.unique(np.concatenate(ranges)) if ranges else np.empty(0, np.uint32)
        return found[differing_bits(self.words[found], word) <= FRAME_BITS]


def find_matches(
    train: Hashes, test: Hashes, track: Callable[[Iterable[int], int], Iterable[int]] = lambda steps, total: steps
) -> list[Match]:
    """Test clips that are, wholly or in part, training clips: of each pair the best shift, best pairs first.

    Args:
        train: a frame every half second or so.
        test: more densely, so that some frame is near any of a copy that was cut anywhere.
        track: shows progress: gets steps and their number, and gives the steps.
    """
    shifts: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    clip_of = np.repeat(np.arange(len(train.clips)), np.diff(train.first))
    blocks = range(0, len(train.words), _BLOCK)
    tables: dict[int, FrameTable] = {}  # one at a time

    def look_up(step: int) -> None:
        block, number = divmod(step, len(test.clips))
        if block not in tables:
            tables.clear()
            tables[block] = FrameTable(train.words[blocks[block] : blocks[block] + _BLOCK])
        made = test.of(number)
        words, at = np.unique(made.words, axis=0, return_index=True)
        for word, seconds in zip(words, made.times[at], strict=True):
            found = tables[block].near(word) + blocks[block]
            rounded = np.round((train.times[found] - seconds) / _SHIFT).astype(int)
            for clip, shift in zip(clip_of[found].tolist(), rounded.tolist(), strict=True):
                shifts[number, clip][shift] += 1

    steps = len(blocks) * len(test.clips)
    for step in track(range(steps), steps):
        look_up(step)
    matches = []
    for (number, clip), votes in shifts.items():
        tried = (
            _aligned(train.of(clip), test.of(number), shift * _SHIFT) for shift, _ in votes.most_common(_MOST_SHIFTS)
        )
        found = [result for result in tried if result is not None]
        if found:
            seconds, score, at = max(found)
            begins = (max(0.0, -at), max(0.0, at))
            matches.append(Match(test.clips[number], train.clips[clip], *begins, seconds, score))
    return sorted(matches, key=lambda match: (-match.score, str(match.test), str(match.train)))


def _aligned(train: Fingerprint, test: Fingerprint, shift: float) -> tuple[float, float, float] | None:
    """(seconds that match, score, shift) of clips of which the test's second t is the training's t + shift, or None."""
    near = 0.6 * test.step + _SHIFT  # seconds: samples of both clips that may show one frame
    inside = slice(*np.searchsorted(train.times, [shift - near, shift + test.times[-1] + near]))
    lag = np.abs(train.times[inside, None] - shift - test.times)
    bits = differing_bits(train.words[inside, None], test.words)
    bits = np.where(lag <= near, bits, BITS + 1).min(1, initial=BITS + 1)
    bits = bits[bits <= BITS]  # where both have a frame that can be told
    matching = int((bits <= FRAME_BITS).sum())
    needed = min(LEAST_FRAMES, len(train.times), len(test.times))
    least = LEAST_SCORE if needed == LEAST_FRAMES else STILL_SCORE
    shorter = min(len(train.times) * train.step, len(test.times) * test.step)
    if matching < needed or matching * train.step < LEAST_SHARE * shorter:
        return None
    score = 1.0 - float(bits.mean()) / (BITS / 2)
    return (min(matching * train.step, shorter), score, shift) if score >= least else None
