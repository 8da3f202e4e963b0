"""Temporal consistency of EditVerse and of TGVE: how alike a video's frames are to a vision model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from icve.evaluation.metrics.frame_features import vision_model
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.pictures import Processed


class TemporalConsistency(Metric):
    """Mean of max(0, cos) of neighbouring frames (EditVerse; its tables have it × 100).

    With CLIP it compares the class token before the projection and is called ``clip_temporal_consistency``; with
    another model, ``dino_temporal_consistency``.

    Args:
        model: folder of CLIP ViT-L/14 (``openai/clip-vit-large-patch14``) or of DINOv2 (``facebook/dinov2-base``).
        device: None is a GPU where there is one.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        self._model = vision_model(model, "openai/clip-vit-large-patch14", device)
        self._preparation = Processed.of(self._model.folder)

    def reset(self, clip: ClipInfo) -> None:
        self._last: Tensor | None = None
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        features = self._model.features(edited, self._preparation)
        features = features if self._last is None else torch.cat([self._last, features])
        self._values += (features[1:] * features[:-1]).sum(-1).clamp(min=0).tolist()
        self._last = features[-1:]

    def compute(self) -> Mapping[str, Figure]:
        name = "clip" if self._model.is_clip else "dino"
        return {f"{name}_temporal_consistency": Figure.mean(self._values)}


class FrameConsistency(Metric):
    """Mean cosine of CLIP's projected features over all pairs of different frames (TGVE), ``clip_frame_consistency``.

    Args:
        model: folder of CLIP ViT-L/14 (``openai/clip-vit-large-patch14``).
        device: None is a GPU where there is one.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        self._model = vision_model(model, "openai/clip-vit-large-patch14", device, clip=True)
        self._preparation = Processed.of(self._model.folder, "square_480")

    def reset(self, clip: ClipInfo) -> None:
        self._sum, self._frames = np.zeros(1), 0

    def update(self, edited: np.ndarray) -> None:
        features = self._model.features(edited, self._preparation, projected=True)
        self._sum = self._sum + features.double().sum(0).cpu().numpy()
        self._frames += len(features)

    def compute(self) -> Mapping[str, float | None]:
        # The features have length 1, so that the square of their sum is the number of frames plus all pairs' cosines.
        pairs = self._frames * (self._frames - 1)
        cosines = float(self._sum @ self._sum) - self._frames
        return {"clip_frame_consistency": cosines / pairs if pairs else None}
