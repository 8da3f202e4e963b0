"""Which frames of a clip make a sample: only frames that the file has, each at most once.

A clip is *slow* where its rate is more than 1 % below the one wanted: 23.976 for 24 is not, 23 is. Its rate is the
average of its frames' times, or what the manifest's column says of the file. A slow clip is taken frame by frame at its
own rate, as `icve edit` takes every video, or left out. Clips of variable rate are sampled by time, and pauses in them
are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from icve.data.buckets import Draw, draw_generator

SlowClips = Literal["own_rate", "drop"]
TemporalCrop = Literal["start", "random"]

_TOLERANCE = 0.01


@dataclass(frozen=True)
class FrameChoice:
    """How a sample's frames are chosen in a clip.

    Args:
        fps: rate to sample at by timestamp; None takes the files' own frames.
        slow_clips: "own_rate" takes clips slower than ``fps`` frame by frame, "drop" refuses them.
        places: where the sample's window lies in the source clip and in the target clip, from 0 (its start) up to, but
            not including, 1 (its end).

    Raises:
        ValueError: no such ``slow_clips``, or a rate that is not positive.
    """

    fps: float | None = None
    slow_clips: SlowClips = "own_rate"
    places: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.slow_clips not in ("own_rate", "drop"):
            raise ValueError(f"slow_clips must be own_rate or drop, not {self.slow_clips}.")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be positive, or null, not {self.fps}.")

    def drawn(self, seed: int, draw: Draw) -> FrameChoice:
        """With random places: a pure function of the seed and the draw."""
        source, target = draw_generator(seed, draw, "temporal crop").random(2).tolist()
        return replace(self, places=(source, target))

    def refuses(self, rate: Any) -> Any:
        """Whether clips of these rates (numbers or arrays) are left out."""
        return is_slow(rate, self.fps) & (self.slow_clips == "drop")

    def describe(self, slow: int) -> str:
        """What is done with so many slow clips, in a sentence."""
        rows = "1 row is" if slow == 1 else f"{slow} rows are"
        done = (
            "left out (slow_clips: drop)"
            if self.slow_clips == "drop"
            else "taken frame by frame (slow_clips: own_rate)"
        )
        return f"{rows} slower than {self.fps:g} fps, and {done}."

    @property
    def refusal(self) -> str:
        """Why they are, in a sentence."""
        return f"it is slower than {self.fps:g} fps: slow_clips own_rate would take it at its own rate."


def average_rate(seconds: np.ndarray) -> float:
    """Frames per second of frames shown at these times, (F,), F at least 2."""
    return (len(seconds) - 1) / float(seconds[-1] - seconds[0])


def is_slow(rate: Any, fps: float | None) -> Any:
    """Whether clips of these rates have too few frames for ``fps``; False for all where that is None."""
    return np.asarray(rate, dtype=np.float64) < (fps or 0.0) * (1 - _TOLERANCE)


def sampled_frames(frames: Any, rate: Any, fps: float | None) -> Any:
    """How many frames clips give at ``fps``, never more than they have.

    Args:
        frames: integers or arrays of them.
        rate: of the files; only asked with ``fps``.
        fps: None for all frames.
    """
    frames = np.asarray(frames, dtype=np.int64)
    if fps is None:
        return frames
    sampled = np.floor((frames - 1) / np.asarray(rate, dtype=np.float64) * fps + 1e-3) + 1
    return np.where(frames > 0, np.minimum(frames, sampled), 0).astype(np.int64)
