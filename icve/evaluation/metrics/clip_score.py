"""CLIP score: how well frames match a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from icve.evaluation.metrics.frame_features import model_folder, vision_model
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.pictures import Before, Processed

Text = Literal["target_caption", "instruction", "source_caption"]


class ClipScore(Metric):
    """Mean over frames of the cosine of CLIP's features of frame and text, ``clip_score``.

    Options other than the defaults are added to the figure's name. Tables that show it × 100 and cut it at 0
    (torchmetrics) do so after the mean.

    Args:
        model: folder of a CLIP model, such as ``openai/clip-vit-base-patch32`` or ``openai/clip-vit-large-patch14``.
        text: what frames are compared with. Many papers name none; a caption of the wanted result says more than an
            instruction.
        before: what is done to the frames first: "square_480" as TGVE, "at_most_672" as EditVerse's PickScore,
            "lower_square" as EditBoard (:data:`icve.evaluation.metrics.pictures.Before`).
        unit: "cosine"; or "logit", × CLIP's learned scale (about 100), as EditVerse.
        processor: folder of tokenizer and image processor, where they are not in the model's.
        device: None is a GPU where there is one.
    """

    name = "clip_score"
    unit: Literal["cosine", "logit"] = "cosine"
    published = published_processor = "openai/clip-vit-base-patch32"

    def __init__(
        self,
        model: str,
        text: Text = "target_caption",
        before: Before = "",
        unit: Literal["cosine", "logit"] | None = None,
        processor: str | None = None,
        device: str | None = None,
    ) -> None:
        self._model = vision_model(model, self.published, device, clip=True)
        self._folder = self._model.folder if processor is None else model_folder(processor, self.published_processor)
        self._preparation = Processed.of(self._folder, before)
        unit = unit or self.unit
        self._scale = 1.0 if unit == "cosine" else float(self._model.model.logit_scale.detach().exp())
        self._text, self.needs = text, ("edited", text)
        options = ((text, "target_caption"), (before, ""), (unit, self.unit))
        self._name = "_".join([self.name, *(chosen for chosen, default in options if chosen != default)])

    def reset(self, clip: ClipInfo) -> None:
        self._wanted = self._model.text_features(clip.texts[self._text], self._folder)
        self._values: list[float] = []

    def update(self, edited: np.ndarray) -> None:
        features = self._model.features(edited, self._preparation, projected=True)
        self._values += (self._scale * (features @ self._wanted)).tolist()

    def compute(self) -> Mapping[str, Figure]:
        return {self._name: Figure.mean(self._values)}
