"""Any picture and any length to what a model takes: its size, overlapping windows, and their cross-faded seams."""

from __future__ import annotations

import math

import numpy as np

ASPECT_TOLERANCE = 0.03


def model_size(height: int, width: int, budget: int, multiple: int) -> tuple[int, int]:
    """The size (height, width) at which a picture is edited: sides near ``budget`` pixels.

    The whole picture is resized to it, so its aspect must be close: 3 % is free, beyond that aspect outweighs area.

    Args:
        height, width: of the picture as shown, in square pixels.
        budget: pixels the model was trained at.
        multiple: what each side is a multiple of.
    """
    best, best_cost = (multiple, multiple), math.inf
    most = multiple * (2 + math.ceil(2 * math.sqrt(budget * height / width) / multiple))
    for rows in range(multiple, most, multiple):
        exact = rows * width / height / multiple
        for columns in {max(1, math.floor(exact)) * multiple, max(1, math.ceil(exact)) * multiple}:
            distortion = abs(math.log(columns * height / (rows * width)))
            cost = abs(math.log(rows * columns / budget)) + 20 * max(0.0, distortion - ASPECT_TOLERANCE)
            if cost < best_cost:
                best, best_cost = (rows, columns), cost
    return best


def windows(frames: int, length: int) -> list[tuple[int, int]]:
    """(start, count) of the windows of a clip, evenly spaced, neighbours sharing at least a third of their frames.

    A clip no longer than ``length`` is one window of its own length; otherwise all have ``length`` frames.
    """
    if frames <= length:
        return [(0, frames)]
    step = max(1, length - max(1, length // 3)) if length > 1 else 1
    count = 1 + math.ceil((frames - length) / step)
    return [(round(i * (frames - length) / (count - 1)), length) for i in range(count)]


class CrossFade:
    """Join windows into one clip: where two overlap, the later one fades in linearly over the whole overlap.

    With n shared frames the difference between the two windows is spread over n + 1 steps. Windows are given in order;
    finished frames come out at once, so that a clip of any length needs the memory of a window.
    """

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._spans, self._next = spans, 0
        self._tail: np.ndarray | None = None  # frames from the next window's start on, still to be faded

    def add(self, frames: np.ndarray) -> np.ndarray:
        """The next window (count, H, W, C) uint8 -> the frames that are finished with it, (n, H, W, C) uint8."""
        start, count = self._spans[self._next]
        frames = frames[:count]
        if self._tail is not None and len(self._tail):
            shared = len(self._tail)
            weight = np.arange(1, shared + 1, dtype=np.float32)[:, None, None, None] / (shared + 1)
            faded = self._tail + (frames[:shared].astype(np.float32) - self._tail) * weight
            frames = np.concatenate([np.rint(faded).astype(np.uint8), frames[shared:]])
        self._next += 1
        done = count if self._next == len(self._spans) else self._spans[self._next][0] - start
        self._tail = frames[done:]
        return frames[:done]
