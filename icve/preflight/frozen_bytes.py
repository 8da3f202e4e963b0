"""Bytes of the frozen codec and text encoders, from their configurations; no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# The released HunyuanVideo's, where the folders named are not there: LLaVA-LLaMA-3-8B's language model and CLIP-L.
LLAMA = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8}
CLIP = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP |= {"num_attention_heads": 12}
UNUSED_LAYERS = 2  # the third hidden state from the end is what comes out before them
ITEM = 2  # bytes of a number: the release's 16 bits


def frozen_bytes(part: Mapping[str, Any]) -> int:
    """Bytes of a codec or text encoder as it stands in a configuration (`class_path`, `init_args`).

    Parts that name no pretrained folders have no weights.
    """
    arguments = part.get("init_args") or {}
    models: list[torch.nn.Module] = []
    with torch.device("meta"):
        if isinstance(arguments.get("pretrained"), str):
            from diffusers import AutoencoderKLHunyuanVideo

            models.append(AutoencoderKLHunyuanVideo.from_config(_config(arguments["pretrained"], {})))
        if isinstance(arguments.get("llama"), str):
            from transformers import LlamaConfig, LlamaModel

            config = LlamaConfig(**_config(arguments["llama"], LLAMA))
            config.num_hidden_layers -= UNUSED_LAYERS
            models.append(LlamaModel(config))
        if isinstance(arguments.get("clip"), str):
            from transformers import CLIPTextConfig, CLIPTextModel

            models.append(CLIPTextModel(CLIPTextConfig(**_config(arguments["clip"], CLIP))))
    return ITEM * sum(parameter.numel() for model in models for parameter in model.parameters())


def _config(folder: str, released: dict[str, Any]) -> dict[str, Any]:
    file = Path(folder).expanduser() / "config.json"
    if not file.is_file():
        return released
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("text_config", config)  # of a whole LLaVA or CLIP, the part that reads text
