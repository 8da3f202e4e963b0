"""How trainers name the layers of HunyuanVideo's transformer in adapters; see `icve.models.family.AdapterNames`."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from icve.models.hunyuan_video.key_names import (
    has_swapped_halves,
    layer_patterns,
    numbered,
    original_parts,
    to_diffusers,
)
from icve.models.layer_prefixes import bare_names

# Kohya's and musubi's, OneTrainer's, LyCORIS' and HunyuanVideo-I2V's, before a name with underscores for dots.
_FLAT_PREFIX = re.compile(r"lora_(?:unet_|transformer_)?|lycoris_|hunyuan_video_(?:[a-z0-9]+_)?lora_", re.IGNORECASE)
# The original names as ComfyUI's own model has them. Not read with underscores for dots: there they are Flux's.
_COMFYUI = (
    ("_attn_qkv.", "_attn.qkv."),
    ("_attn_proj.", "_attn.proj."),
    ("_mod.linear.", "_mod.lin."),
    (".modulation.linear.", ".modulation.lin."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_in.mlp.0.", "_in.in_layer."),
    ("_in.mlp.2.", "_in.out_layer."),
    ("t_embedder.mlp.0.", "t_embedder.in_layer."),
    ("t_embedder.mlp.2.", "t_embedder.out_layer."),
    ("c_embedder.linear_1.", "c_embedder.in_layer."),
    ("c_embedder.linear_2.", "c_embedder.out_layer."),
)

# The same as OneTrainer has them (OMI), which numbers the parts of a stacked layer: `linear1.0` to `linear1.3`.
_OMI = (
    ("mlp.fc1.", "mlp.fc0."),
    ("t_embedder.mlp.0.", "t_embedder.linear_1."),
    ("t_embedder.mlp.2.", "t_embedder.linear_2."),
)


def known_layer(layer: str) -> str:
    """A layer named in a file, as diffusers or the original naming has it.

    Raises:
        KeyError: a layer that no HunyuanVideo transformer has.
    """
    for name in bare_names(layer):
        pattern, number = numbered(name)
        pattern = _SPELLINGS.get(pattern, pattern)
        if pattern in _PATTERNS:
            return pattern.replace("#", number)
    for start in {match.end() for match in [_FLAT_PREFIX.match(layer), re.match("lora_", layer)] if match}:
        for flat, pattern in _FLAT.items():
            if match := flat.fullmatch(layer, start):
                return pattern.replace("#", match[1] if match.groups() else "")
    raise KeyError(layer)


def split(layer: str, rows: Tensor, width: int) -> dict[str, Tensor]:
    """diffusers' layers of a known one, with their rows; query, key and value are as wide as their input.

    Raises:
        ValueError: the rows do not fit layers of this width.
    """
    pieces = to_diffusers({f"{layer}.weight": rows}, width)
    return {name.removesuffix(".weight"): piece for name, piece in pieces.items()}


stacked = original_parts


def original_rows(original: str, rows: Tensor) -> Tensor:
    """Rows in the order of an original layer, of which one has diffusers' halves exchanged."""
    return torch.cat(rows.chunk(2)[::-1]) if has_swapped_halves(original) else rows


def _respelled(pattern: str, spellings: tuple[tuple[str, str], ...]) -> str:
    pattern += "."
    for original, spelling in spellings:
        pattern = pattern.replace(original, spelling)
    return pattern.removesuffix(".")


def _spellings() -> Iterator[tuple[str, str]]:
    """Other spellings of layers' patterns, and what they are in the original or in diffusers' naming."""
    for layer in layer_patterns("diffusers"):
        original, parts = original_parts(layer)
        yield _respelled(original, _COMFYUI), original
        if len(parts) > 1:
            yield f"{original}.{parts.index(layer)}", layer
        else:
            yield _respelled(original, _OMI), original


_SPELLINGS = dict(_spellings())
_PATTERNS = (*layer_patterns("original"), *layer_patterns("diffusers"))
_FLAT = {
    re.compile(r"(\d+)".join(re.escape(piece.replace(".", "_")) for piece in pattern.split("#"))): pattern
    for pattern in _PATTERNS
}
