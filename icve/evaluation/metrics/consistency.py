"""Subject and background consistency (VBench, IVEBench): how much frames keep of the first and of the previous one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from icve.evaluation.metrics.frame_features import VisionModel, vision_model
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.pictures import CLIP, IMAGENET, Interpolated, Preparation, Processed, Squashed


class _Consistency(Metric):
    """Mean over the frames i after the first of ½[max(0, cos(f_i, f_{i-1})) + max(0, cos(f_i, f_0))] of features f.

    Its weight is the number of those frames: VBench's own total in one process is the ``pooled`` mean.
    """

    def __init__(self, name: str, model: VisionModel, preparation: Preparation, projected: bool) -> None:
        self._name, self._model, self._preparation, self._projected = name, model, preparation, projected

    def reset(self, clip: ClipInfo) -> None:
        self._first: Tensor | None = None
        self._last: Tensor  # from the first frame on
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        features = self._model.features(edited, self._preparation, self._projected)
        if self._first is None:
            self._first = features[0]
        else:
            features = torch.cat([self._last, features])
        to_last, to_first = (features[1:] * features[:-1]).sum(-1), (features[1:] * self._first).sum(-1)
        self._values += ((to_last.clamp(min=0) + to_first.clamp(min=0)) / 2).tolist()
        self._last = features[-1:]

    def compute(self) -> Mapping[str, Figure]:
        return {self._name: Figure.mean(self._values)}


class SubjectConsistency(_Consistency):
    """Subject consistency of DINO's class token, ``subject_consistency``, in 0..1.

    Args:
        model: folder of DINO ViT-B/16 (``facebook/dino-vitb16``).
        variant: "vbench" keeps the picture's proportions (the shorter side becomes 224); "ivebench" squashes it to
            224 × 224 and takes ViT-S/16 (``facebook/dino-vits16``), which gives ``subject_consistency_ivebench``.
        device: None is a GPU where there is one.
    """

    def __init__(
        self, model: str, variant: Literal["vbench", "ivebench"] = "vbench", device: str | None = None
    ) -> None:
        vbench = variant == "vbench"
        loaded = vision_model(model, "facebook/dino-vitb16" if vbench else "facebook/dino-vits16", device, clip=False)
        preparation = Interpolated("bilinear", False, IMAGENET) if vbench else Squashed()
        super().__init__("subject_consistency" + _suffix(variant), loaded, preparation, False)


class BackgroundConsistency(_Consistency):
    """Background consistency of CLIP's projected features, ``background_consistency``, in 0..1.

    Args:
        model: folder of CLIP ViT-B/32 (``openai/clip-vit-base-patch32``).
        variant: "vbench" interpolates without antialiasing, and does not clamp what overshoots; "ivebench" prepares
            pictures as CLIP's own processor does, which gives ``background_consistency_ivebench``.
        device: None is a GPU where there is one.
    """

    def __init__(
        self, model: str, variant: Literal["vbench", "ivebench"] = "vbench", device: str | None = None
    ) -> None:
        loaded = vision_model(model, "openai/clip-vit-base-patch32", device, clip=True)
        vbench = Interpolated("bicubic", True, CLIP)
        preparation = vbench if variant == "vbench" else Processed.of(loaded.folder)
        super().__init__("background_consistency" + _suffix(variant), loaded, preparation, True)


def _suffix(variant: str) -> str:
    return "" if variant == "vbench" else f"_{variant}"
