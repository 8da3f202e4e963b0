"""Parameter names: the original ICVE / Tencent layout and diffusers', both ways (methods §1.7).

The original stores query, key and value of a projection in one matrix, a single-stream block's MLP input with them,
and the last layer's modulation as (shift, scale) where diffusers has (scale, shift). Values are moved, never changed.
"""

import re
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

# (original, diffusers) for names that differ by spelling only. `#` stands for a block number.
_RENAMES = [
    ("img_in.proj", "x_embedder.proj"),
    ("mask_in.proj", "mask_embedder.proj"),
    ("time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("guidance_in.mlp.0", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("txt_in.input_embedder", "context_embedder.proj_in"),
    ("txt_in.t_embedder.mlp.0", "context_embedder.time_text_embed.timestep_embedder.linear_1"),
    ("txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2"),
    ("txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1"),
    ("txt_in.c_embedder.linear_2", "context_embedder.time_text_embed.text_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
]
_REFINER = ("txt_in.individual_token_refiner.blocks.#.", "context_embedder.token_refiner.refiner_blocks.#.")
_DOUBLE = ("double_blocks.#.", "transformer_blocks.#.")
_SINGLE = ("single_blocks.#.", "single_transformer_blocks.#.")
_IN_BLOCKS = {
    _REFINER: [
        ("norm1", "norm1"),
        ("norm2", "norm2"),
        ("self_attn_proj", "attn.to_out.0"),
        ("mlp.fc1", "ff.net.0.proj"),
        ("mlp.fc2", "ff.net.2"),
        ("adaLN_modulation.1", "norm_out.linear"),
    ],
    _DOUBLE: [
        ("img_mod.linear", "norm1.linear"),
        ("txt_mod.linear", "norm1_context.linear"),
        ("img_attn_q_norm", "attn.norm_q"),
        ("img_attn_k_norm", "attn.norm_k"),
        ("txt_attn_q_norm", "attn.norm_added_q"),
        ("txt_attn_k_norm", "attn.norm_added_k"),
        ("img_attn_proj", "attn.to_out.0"),
        ("txt_attn_proj", "attn.to_add_out"),
        ("img_mlp.fc1", "ff.net.0.proj"),
        ("img_mlp.fc2", "ff.net.2"),
        ("txt_mlp.fc1", "ff_context.net.0.proj"),
        ("txt_mlp.fc2", "ff_context.net.2"),
    ],
    _SINGLE: [
        ("modulation.linear", "norm.linear"),
        ("q_norm", "attn.norm_q"),
        ("k_norm", "attn.norm_k"),
        ("linear2", "proj_out"),
    ],
}
_RENAMES += [(a + x, b + y) for (a, b), names in _IN_BLOCKS.items() for x, y in names]

# One original matrix is several of diffusers', stacked along the output dimension.
_STACKED = [
    (_REFINER[0] + "self_attn_qkv", [_REFINER[1] + f"attn.to_{x}" for x in "qkv"]),
    (_DOUBLE[0] + "img_attn_qkv", [_DOUBLE[1] + f"attn.to_{x}" for x in "qkv"]),
    (_DOUBLE[0] + "txt_attn_qkv", [_DOUBLE[1] + f"attn.add_{x}_proj" for x in "qkv"]),
    (_SINGLE[0] + "linear1", [_SINGLE[1] + f"attn.to_{x}" for x in "qkv"] + [_SINGLE[1] + "proj_mlp"]),
]
_SWAPPED_HALVES = ("final_layer.adaLN_modulation.1", "norm_out.linear")

_TO_DIFFUSERS = {a: [b] for a, b in _RENAMES} | dict(_STACKED) | {_SWAPPED_HALVES[0]: [_SWAPPED_HALVES[1]]}
_TO_ORIGINAL = {b: a for a, targets in _TO_DIFFUSERS.items() for b in targets}


def numbered(layer: str) -> tuple[str, str]:
    """'double_blocks.7.img_mod.linear' -> ('double_blocks.#.img_mod.linear', '7'); no number outside of blocks."""
    match = re.match(r"(.*?blocks\.)(\d+|#)(\..*)", layer)
    return (match[1] + "#" + match[3], match[2]) if match else (layer, "")


def _pattern(key: str) -> tuple[str, str, str]:
    """'double_blocks.7.img_mod.linear.weight' -> ('double_blocks.#.img_mod.linear', '7', '.weight')."""
    stem, _, kind = key.rpartition(".")
    return *numbered(stem), "." + kind


def wrapper_prefix(keys: Iterable[str]) -> str:
    """What stands before every name of a transformer saved from within something larger, as "module." or "".

    Found by the patch embedding, which every transformer has once.
    """
    for key in keys:
        for name in ("img_in.proj.weight", "x_embedder.proj.weight"):
            if key == name or key.endswith("." + name):
                return key.removesuffix(name)
    return ""


def is_original(keys: Iterable[str]) -> bool:
    """Whether a state dict has the original (ICVE / Tencent) names."""
    return any(key.startswith(("img_in.", "double_blocks.", "single_blocks.", "txt_in.")) for key in keys)


def to_diffusers(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Original names -> diffusers' names. Keys that are not known pass through unchanged.

    Args:
        state: original state dict.
        width: the model width D, the output size of each stacked query, key and value.

    Raises:
        ValueError: a matrix does not hold what its name says at this width.
    """
    out = {}
    for key, value in state.items():
        stem, number, kind = _pattern(key)
        targets = _TO_DIFFUSERS.get(stem)
        if targets is None:
            out[key] = value
            continue
        if stem == _SWAPPED_HALVES[0]:
            if len(value) % 2:
                raise ValueError(f"'{key}' has {len(value)} rows, which are no two halves.")
            pieces = [torch.cat(value.chunk(2)[::-1])]
        elif len(targets) > 1:
            rest = len(value) - 3 * width
            if (rest <= 0) if len(targets) == 4 else rest:
                raise ValueError(f"'{key}' has {len(value)} rows, which does not fit a model of width {width}.")
            pieces = value.split([width] * 3 + [rest] * (len(targets) == 4))
        else:
            pieces = [value]
        for target, piece in zip(targets, pieces, strict=True):
            out[target.replace("#", number) + kind] = piece
    return out


def to_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names -> original names, the inverse of `to_diffusers`.

    Raises:
        KeyError: a key has no counterpart in the original layout.
    """
    out = {}
    for key, value in state.items():
        stem, number, kind = _pattern(key)
        if stem not in _TO_ORIGINAL:
            raise KeyError(f"'{key}' has no counterpart in the original layout.")
        original = _TO_ORIGINAL[stem]
        name = original.replace("#", number) + kind
        if original == _SWAPPED_HALVES[0]:
            out[name] = torch.cat(value.chunk(2)[::-1])
        elif len(parts := _TO_DIFFUSERS[original]) > 1:
            if name not in out:
                out[name] = torch.cat([state[part.replace("#", number) + kind] for part in parts])
        else:
            out[name] = value
    return out


def original_parts(layer: str) -> tuple[str, list[str]]:
    """Original name of one of diffusers' layers, and all of diffusers' layers that it stacks, in order.

    Raises:
        KeyError: the layer has no counterpart.
    """
    stem, number, _ = _pattern(layer + ".weight")
    original = _TO_ORIGINAL[stem]
    return original.replace("#", number), [part.replace("#", number) for part in _TO_DIFFUSERS[original]]


def layer_patterns(naming: Literal["original", "diffusers"]) -> list[str]:
    """All layers of a naming, with "#" for a block's number."""
    return list(_TO_DIFFUSERS if naming == "original" else _TO_ORIGINAL)


def has_swapped_halves(original: str) -> bool:
    """Whether the rows of an original layer are diffusers' with their halves exchanged."""
    return original == _SWAPPED_HALVES[0]


def sources(original: str) -> list[str]:
    """diffusers' names of the tensors that an original tensor is made of, in their order."""
    stem, number, kind = _pattern(original)
    return [part.replace("#", number) + kind for part in _TO_DIFFUSERS[stem]]
