"""What vision models see in frames. Metrics with the same model, or the same preparation of pictures, share work."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icve.editing.editors import checked_device
from icve.evaluation.metrics.pictures import Preparation

_KEPT = 2  # chunks of frames: those of an edit and its source, which metrics take in turn


class _Recent:
    """What was computed of the chunks of frames that were asked for last."""

    def __init__(self) -> None:
        self._held: list[tuple[np.ndarray, dict[Hashable, Any]]] = []

    def get(self, frames: np.ndarray, key: Hashable, make: Callable[[], Any]) -> Any:
        known = next((results for held, results in self._held if held is frames), None)
        if known is None:
            known = {}
            self._held = [(frames, known), *self._held][:_KEPT]
        if key not in known:
            known[key] = make()
        return known[key]


_RECENT = _Recent()


class VisionModel:
    """A model of pictures, in float32: CLIP (`CLIPModel`) or one with a class token (DINO's `ViTModel`, DINOv2).

    Args:
        folder: in transformers' layout.
        device: that it computes on.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(folder)
        self.is_clip = config.model_type == "clip"
        self._resizes = config.model_type == "vit"  # others fit their position table to the picture unasked
        options: dict[str, Any] = {"add_pooling_layer": False} if self._resizes else {}
        self.model = AutoModel.from_pretrained(folder, config=config, **options).float().eval().to(device)
        self.folder, self.device = folder, device

    @torch.inference_mode()
    def features(self, frames: np.ndarray, preparation: Preparation, projected: bool = False) -> Tensor:
        """Normalised features (n, D) of frames (n, H, W, 3) uint8: the class token after the last norm; with
        ``projected``, which CLIP has, in the space that texts share."""
        found: Tensor = _RECENT.get(frames, (self, preparation), lambda: self._class_token(frames, preparation))
        if projected:
            found = self.model.visual_projection(found)
        return torch.nn.functional.normalize(found, dim=-1)

    def _class_token(self, frames: np.ndarray, preparation: Preparation) -> Tensor:
        key = (preparation, self.device)
        pixels = _RECENT.get(frames, key, lambda: preparation(frames, torch.device(self.device)))
        if self.is_clip:
            return self.model.vision_model(pixel_values=pixels).pooler_output
        options = {"interpolate_pos_encoding": True} if self._resizes else {}
        return self.model(pixel_values=pixels, **options).last_hidden_state[:, 0]

    @torch.inference_mode()
    def text_features(self, text: str, tokenizer: Path) -> Tensor:
        """Normalised features (D) of a text, of which CLIP reads the first 77 tokens, the last of them the end."""
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(tokenizer)(
            text, truncation=True, max_length=self.model.config.text_config.max_position_embeddings, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return torch.nn.functional.normalize(self.model.text_projection(pooled)[0], dim=-1)


def vision_model(folder: str, published: str, device: str | None = None, clip: bool | None = None) -> VisionModel:
    """The model of a folder, loaded once for all metrics.

    Args:
        folder: in transformers' layout.
        published: its name on the Hugging Face hub, for the message.
        device: to compute on; None is a GPU where there is one.
        clip: whether it has to be a CLIP model, or must not; None takes either.

    Raises:
        ValueError: there is no such folder or device, or it is of another kind.
    """
    path = model_folder(folder, published)
    model = _loaded(path.resolve(), checked_device(device))
    if clip is not None and clip != model.is_clip:
        raise ValueError(f"{folder} holds {'no' if clip else 'a'} CLIP model: give the folder of {published}.")
    return model


def model_folder(folder: str, published: str) -> Path:
    """The folder, if it holds a model. Raises ValueError otherwise."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"There is no model in {folder}: download it with `hf download {published} --local-dir {folder}`, or name "
            "another folder of models in ICVE_MODELS."
        )
    return Path(folder)


@cache
def _loaded(folder: Path, device: str) -> VisionModel:
    try:
        return VisionModel(folder, device)
    except (OSError, RuntimeError, AttributeError) as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
