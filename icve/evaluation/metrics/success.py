"""Success on the synthetic benchmark: the result is nearest to the true target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from icve.evaluation.metrics.metric import ClipInfo, Metric


class SyntheticSuccess(Metric):
    """``success``: 1 where the result is strictly nearer (squared error over the clip) to the true target than to the
    source and to every result of another instruction, else 0. For test sets of `icve synthesize pairs --split test`."""

    needs = ("edited", "source", "target", "distractors")

    def reset(self, clip: ClipInfo) -> None:
        self._target, self._others = 0.0, np.zeros(1)

    def update(
        self, edited: np.ndarray, source: np.ndarray, target: np.ndarray, distractors: Sequence[np.ndarray]
    ) -> None:
        self._target += _squared(edited, target)
        self._others = self._others + np.array([_squared(edited, other) for other in (source, *distractors)])

    def compute(self) -> Mapping[str, float]:
        return {"success": float(self._target < self._others.min())}


def _squared(first: np.ndarray, second: np.ndarray) -> float:
    return sum(cv2.norm(a, b, cv2.NORM_L2SQR) for a, b in zip(first, second, strict=True))
