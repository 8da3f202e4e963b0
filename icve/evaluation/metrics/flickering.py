"""Temporal flickering (VBench): how little neighbouring frames differ."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric


class TemporalFlickering(Metric):
    """(255 - mean |frame - next frame|) / 255, ``temporal_flickering``; 1 is a still.

    VBench measures static videos with it. Editing papers measure all, so that it also punishes motion.
    """

    def reset(self, clip: ClipInfo) -> None:
        self._last: np.ndarray | None = None
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        for frame in edited:
            if self._last is not None:
                self._values.append(1 - cv2.norm(frame, self._last, cv2.NORM_L1) / frame.size / 255)
            self._last = frame

    def compute(self) -> Mapping[str, Figure]:
        return {"temporal_flickering": Figure.mean(self._values)}
