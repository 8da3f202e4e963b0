"""Whether an editor's layers agree: the composite that it made, and the one that its layers give."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric


class CompositeDifference(Metric):
    """Mean over frames of |composite - ((1 - alpha) · source + alpha · layer)|, in levels of 0..255,
    ``composite_difference``; lower is better."""

    needs = ("source", "composite", "layer", "alpha")
    lower_is_better = ("composite_difference",)

    def reset(self, clip: ClipInfo) -> None:
        self._values: list[float] = []

    def update(self, composite: np.ndarray, source: np.ndarray, layer: np.ndarray, alpha: np.ndarray) -> None:
        for shown, behind, before, opacity in zip(composite, source, layer, alpha, strict=True):
            share = (opacity.astype(np.float32) / 255)[..., None]
            composed = behind + share * (before.astype(np.float32) - behind)
            self._values.append(float(np.abs(shown - composed).mean(dtype=np.float64)))

    def compute(self) -> Mapping[str, Figure]:
        return {"composite_difference": Figure.mean(self._values)}
