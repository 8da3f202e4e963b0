"""EditBoard's own figures: success by CLIP, change outside the mask, and how motion differs from the source's."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from icve.evaluation.metrics.frame_features import vision_model
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.pictures import Processed


class ClipSuccess(Metric):
    """Share of frames that CLIP finds at least as near to the target's caption as to the source's,
    ``clip_success_rate``. EditBoard's similarity is `ClipScore` with ``before: lower_square``.

    Args:
        model: folder of CLIP ViT-B/32 (``openai/clip-vit-base-patch32``).
        device: None is a GPU where there is one.
    """

    needs = ("edited", "target_caption", "source_caption")

    def __init__(self, model: str, device: str | None = None) -> None:
        self._model = vision_model(model, "openai/clip-vit-base-patch32", device, clip=True)
        self._preparation = Processed.of(self._model.folder, "lower_square")

    def reset(self, clip: ClipInfo) -> None:
        target, source = (
            self._model.text_features(clip.texts[name], self._model.folder)
            for name in ("target_caption", "source_caption")
        )
        self._towards = target - source
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        features = self._model.features(edited, self._preparation, projected=True)
        self._values += (features @ self._towards >= 0).float().tolist()

    def compute(self) -> Mapping[str, Figure]:
        return {"clip_success_rate": Figure.mean(self._values)}


class ChangeOutside(Metric):
    """Mean over frames of the largest channel's |edited - source| outside the mask, in levels of 0..255,
    ``change_outside`` (EditBoard's semantic score); lower is better."""

    needs = ("edited", "source", "mask")
    lower_is_better = ("change_outside",)

    def reset(self, clip: ClipInfo) -> None:
        self._values: list[float] = []

    def update(self, edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> None:
        for first, second, inside in zip(edited, source, mask, strict=True):
            if not inside.all():
                self._values.append(float(cv2.absdiff(first, second).max(-1)[~inside].mean()))

    def compute(self) -> Mapping[str, Figure]:
        return {"change_outside": Figure.mean(self._values)}


class FlowDifference(Metric):
    """Mean over pairs of frames of 1 - cos between the optical flow (Farnebäck's) of edited video and source,
    ``flow_difference`` (EditBoard's FF-β); a pixel without motion counts 1."""

    needs = ("edited", "source")
    lower_is_better = ("flow_difference",)

    def reset(self, clip: ClipInfo) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._values: list[float] = []

    def update(self, edited: np.ndarray, source: np.ndarray) -> None:
        for pair in zip(edited, source, strict=True):
            greys = cv2.cvtColor(pair[0], cv2.COLOR_RGB2GRAY), cv2.cvtColor(pair[1], cv2.COLOR_RGB2GRAY)
            if self._last is not None:
                a, b = map(_flow, self._last, greys)
                lengths = (np.linalg.norm(a, axis=-1) + 1e-7) * (np.linalg.norm(b, axis=-1) + 1e-7)
                self._values.append(float((1 - (a * b).sum(-1) / lengths).mean(dtype=np.float64)))
            self._last = greys

    def compute(self) -> Mapping[str, Figure]:
        return {"flow_difference": Figure.mean(self._values)}


def _flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
