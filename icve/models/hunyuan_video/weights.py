"""Layouts of the transformer's weights: diffusers', and ICVE's and Tencent's; see `icve.models.family.Weights`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icve.models.checkpoint_files import write_shards
from icve.models.family import Rename
from icve.models.hunyuan_video.base_folders import tencent_transformer
from icve.models.hunyuan_video.configs import config_from, mismatch, original_config
from icve.models.hunyuan_video.key_names import is_original, sources, to_diffusers, to_original, wrapper_prefix

__all__ = ["EXPORTS", "locate", "mismatch", "read", "recognise"]

_PATCH_EMBEDDINGS = ("img_in.proj.weight", "x_embedder.proj.weight")


def recognise(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """By the class or the sizes that a configuration names, else by the patch embedding, which every one has."""
    if "HunyuanVideo" in str(config.get("_class_name", "")) or "mm_double_blocks_depth" in config:
        return True
    return any(key == name or key.endswith("." + name) for key in tensors for name in _PATCH_EMBEDDINGS)


locate = tencent_transformer


def read(
    config: dict[str, Any], tensors: dict[str, Tensor], overrides: dict[str, Any]
) -> tuple[dict[str, Any], Rename]:
    """diffusers' configuration, and the way from stored tensors to diffusers' names.

    Raises:
        ValueError, KeyError: no whole text-to-video transformer.
    """
    prefix = wrapper_prefix(tensors)
    stored = {key.removeprefix(prefix): value for key, value in tensors.items()}
    original = is_original(stored)
    config = config_from(config, stored) | overrides
    if config.get("in_channels", 16) != config.get("out_channels", 16):
        raise ValueError(
            f"These weights take {config['in_channels']} channels where text-to-video (T2V) ones take "
            f"{config['out_channels']}: they are likely an image-to-video (I2V) model's."
        )
    # The tensors' width, not the configured one, which may not fit them.
    width = stored["img_in.proj.weight"].shape[0] if "img_in.proj.weight" in stored else 0

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        return to_diffusers(tensors, width) if original else tensors

    return config, rename


def _save_original(model: Any, folder: Path, limit: int | None) -> None:
    """Write a transformer with the original names and configuration; one shard at a time is put together."""
    state = model.state_dict()
    meta = to_original({key: torch.empty_like(value, device="meta") for key, value in state.items()})

    def shard(keys: list[str]) -> dict[str, Tensor]:
        return to_original({part: state[part].detach().cpu() for key in keys for part in sources(key)})

    write_shards(folder, {key: value.nbytes for key, value in meta.items()}, shard, limit)
    (folder / "config.json").write_text(json.dumps(original_config(model), indent=2) + "\n", encoding="utf-8")


EXPORTS: Mapping[str, Callable[[Any, Path, int | None], None]] = {"icve": _save_original}
