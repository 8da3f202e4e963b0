"""Scenes in which too little happens to make two clips differ, or so much that nothing can be seen."""

from __future__ import annotations

import numpy as np

from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, RowStage, Workspace

_SMOOTHING = 0.5  # seconds: slower changes of direction are camera work, faster ones shake


class Motion(RowStage):
    """Drops scenes by their optical flow (ICVE, clip pairs: low-motion segments are dropped).

    Flow is in frame diagonals per second, by the frames' own timestamps, so that it means the same at every resolution
    and frame rate.

    Reads ``signals``, ``scene_start`` and ``scene_end``. Adds ``motion`` (median over the scene of the median over the
    picture), ``motion_peak`` (the same of the 95th percentile over the picture: something small moves before a camera
    that stands still) and ``shake`` (how fast the picture as a whole departs from its smoothed course).

    Args:
        min: least motion of a scene whose camera moves.
        min_peak: least motion of what moves most; a scene below both is dropped.
        max: most motion.
        max_shake: most shake.
    """

    def __init__(self, min: float = 0.01, min_peak: float = 0.02, max: float = 1.0, max_shake: float = 0.4) -> None:
        if not 0 <= min <= max or min_peak < 0 or max_shake <= 0:
            raise ValueError("0 <= min <= max, min_peak of at least 0 and a positive max_shake are wanted.")
        self.min, self.min_peak, self.max, self.max_shake = min, min_peak, max, max_shake

    def outcome(self, row: Row, work: Workspace) -> Row | Rejected:
        pairs, median, peak, pan, seconds = read_signals(
            work, row, "flow_frames", "flow_median", "flow_peak", "flow_pan", "seconds"
        )
        inside = (pairs[:, 0] >= row["scene_start"]) & (pairs[:, 1] < row["scene_end"])
        if not inside.any():
            return Rejected("scene too short", f"{row['scene_end'] - row['scene_start']} frames tell no motion")
        found = {
            "motion": float(np.median(median[inside])),
            "motion_peak": float(np.median(peak[inside])),
            "shake": shake(pan[inside], seconds[pairs[inside]].mean(-1)),
        }
        if found["motion"] < self.min and found["motion_peak"] < self.min_peak:
            detail = f"{found['motion']:.4f} diagonals/s, {found['motion_peak']:.4f} where most"
            return Rejected("low motion", f"{detail}; at least {self.min:g} or {self.min_peak:g} wanted")
        if found["motion"] > self.max:
            return Rejected("excessive motion", f"{found['motion']:.2f} diagonals/s, at most {self.max:g} wanted")
        if found["shake"] > self.max_shake:
            return Rejected("shaky", f"shake of {found['shake']:.3f} diagonals/s, at most {self.max_shake:g} wanted")
        return row | found


def shake(pan: np.ndarray, seconds: np.ndarray) -> float:
    """Root mean square distance of a velocity (N, 2) at times (N,) from its mean over half a second around."""
    near = np.searchsorted(seconds, seconds - _SMOOTHING / 2), np.searchsorted(seconds, seconds + _SMOOTHING / 2)
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(pan, axis=0, dtype=np.float64)])
    smooth = (sums[near[1]] - sums[near[0]]) / (near[1] - near[0])[:, None]
    return float(np.sqrt(np.square(pan - smooth).sum(-1).mean()))
