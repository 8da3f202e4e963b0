"""Layouts of the transformer's weights: diffusers', and Wan's own, which DiffSynth and ComfyUI keep too; see
`icve.models.family.Weights`."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icve.models.checkpoint_files import write_shards
from icve.models.family import Rename
from icve.models.wan.key_names import is_original, original_name, to_diffusers, to_original, wrapper_prefix
from icve.models.wan.transformer import WanInContextTransformer3DModel as Model
from icve.models.weight_mismatch import block_count, differences

__all__ = ["EXPORTS", "locate", "mismatch", "read", "recognise"]

_PARAMETERS = frozenset(inspect.signature(Model.__init__).parameters) - {"self"}
_HEAD = 128  # channels of a head in all published models; tensors do not tell (num_attention_heads overrides it)
_IMAGE = ("image_embedder", "img_emb", "add_k_proj", "k_img")  # in names of image-to-video models
# What original configurations call the values that diffusers' have too.
_ORIGINAL = {
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "eps": "eps",
    "text_len": "text_len",
}


def recognise(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """By the class that a configuration names, else by the patch embedding, which every one has."""
    if str(config.get("_class_name", "")).startswith("Wan"):
        return True
    return any(key == "patch_embedding.weight" or key.endswith(".patch_embedding.weight") for key in tensors)


def locate(folder: Path) -> Path | None:
    """None: Wan publishes its transformer in the folder itself."""
    return None


def read(
    config: dict[str, Any], tensors: dict[str, Tensor], overrides: dict[str, Any]
) -> tuple[dict[str, Any], Rename]:
    """diffusers' configuration, and the way from stored tensors to diffusers' names.

    Raises:
        ValueError, KeyError: no whole text-to-video transformer.
    """
    prefix = wrapper_prefix(tensors)
    original = is_original(key.removeprefix(prefix) for key in tensors)

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        return to_diffusers(tensors) if original else tensors

    config = _config(config, rename(tensors)) | overrides
    image = next((key for key in tensors if any(word in key for word in _IMAGE)), None)
    channels = (config["in_channels"], config["out_channels"])
    if image is not None or channels[0] != channels[1]:
        reason = f"'{image}'" if image else f"{channels[0]} channels in, {channels[1]} out"
        raise ValueError(
            f"these weights are likely an image-to-video (I2V) model's ({reason}): take the text-to-video (T2V) ones."
        )
    return config, rename


def _config(stored: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration from diffusers' own, from the original's, or from the tensors' shapes."""
    if "num_attention_heads" in stored:
        known = {key: value for key, value in stored.items() if key in _PARAMETERS}
        defaults = {"in_channels": 16, "out_channels": known.get("in_channels", 16)}
        known = defaults | {key: value for key, value in known.items() if key != "out_channels" or value}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    config = _from_shapes(tensors)
    config |= {ours: stored[theirs] for ours, theirs in _ORIGINAL.items() if theirs in stored}
    width = tensors["patch_embedding.weight"].shape[0]
    heads = config.setdefault("num_attention_heads", max(1, width // _HEAD))
    return config | {"attention_head_dim": stored.get("dim", width) // heads}


def _from_shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"these weights are no whole Wan transformer: '{name}' is missing, download them again.")
        return tensors[name].shape

    _, channels, *patch = shape("patch_embedding.weight")
    return {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "out_channels": shape("proj_out.weight")[0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")[0],
        "num_layers": block_count(tensors, "blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in tensors,
    }


def mismatch(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str | None:
    """As `differences`, with the likely cause."""
    return differences(expected, given, lambda missing, unexpected: _cause(expected, given, missing, unexpected))


_SIZES = {1536: "the 1.3B", 3072: "Wan 2.2's 5B", 5120: "the 14B"}  # by width


def _cause(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> str | None:
    embed = "patch_embedding.weight"
    if embed in given and given[embed].shape != expected[embed].shape:
        (width, channels, *patch), (own_width, own_channels, *own_patch) = given[embed].shape, expected[embed].shape
        if channels != own_channels:
            versions = {16: "Wan 2.1's", 48: "Wan 2.2's 5B's", 36: "an image-to-video (I2V) model's"}
            theirs, ours = (versions.get(count, "another model's") for count in (channels, own_channels))
            return f"{theirs} weights ({channels} latent channels), where the configuration is {ours} ({own_channels})"
        if width != own_width:
            theirs, ours = (_SIZES.get(size, f"width {size}") for size in (width, own_width))
            return f"the weights of {theirs}, where the configuration is of {ours}"
        return f"another patch size, {tuple(patch)} (t, h, w) instead of {tuple(own_patch)}"
    if (there := block_count(given, "blocks.")) != (here := block_count(expected, "blocks.")):
        return f"another depth: num_layers is {here} where the weights have {there}"
    if missing and not unexpected:
        return "an incomplete download or export"
    return None


def _save_original(model: Any, folder: Path, limit: int | None) -> None:
    """Write a transformer with Wan's own names and configuration; one shard at a time is put together."""
    state, config = model.state_dict(), model.config
    names = {original_name(key): key for key in state}

    def shard(keys: list[str]) -> dict[str, Tensor]:
        return to_original({names[key]: state[names[key]].detach().cpu() for key in keys})

    write_shards(folder, {key: state[name].nbytes for key, name in names.items()}, shard, limit)
    stored = {theirs: config[ours] for ours, theirs in _ORIGINAL.items()}
    stored |= {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.num_attention_heads * config.attention_head_dim,
    }
    (folder / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


EXPORTS: Mapping[str, Callable[[Any, Path, int | None], None]] = {"wan": _save_original}
