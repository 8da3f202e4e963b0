"""Parameter names of Wan's transformer, autoencoder and text encoder: the original layout and diffusers', both ways.

Tensors are renamed only: none is split, joined or reordered.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# (original, diffusers), of layers or single tensors. `#` stands for a block's number.
_ROOT = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_TO_DIFFUSERS = _ROOT | {f"blocks.#.{ours}": f"blocks.#.{theirs}" for ours, theirs in _BLOCK.items()}
_TO_ORIGINAL = {theirs: ours for ours, theirs in _TO_DIFFUSERS.items()}
_TABLES = ("modulation", "scale_shift_table")  # tensors that are no layer's weight or bias


def wrapper_prefix(keys: Iterable[str]) -> str:
    """What stands before every name of a transformer saved from within something larger, as "model.diffusion_model.".

    Found by the patch embedding, which every transformer has once.
    """
    name = "patch_embedding.weight"
    return next((key.removesuffix(name) for key in keys if key == name or key.endswith("." + name)), "")


def is_original(keys: Iterable[str]) -> bool:
    """Whether a state dict has the original names."""
    return any(key.startswith(("text_embedding.", "time_projection.", "head.")) or ".self_attn." in key for key in keys)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names -> diffusers' names. Keys that are not known pass through unchanged."""
    return {_renamed(key, _TO_DIFFUSERS) or key: value for key, value in state.items()}


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names -> original names, the inverse of `to_diffusers`.

    Raises:
        KeyError: a key has no counterpart in the original layout.
    """
    return {original_name(key): value for key, value in state.items()}


def original_name(key: str) -> str:
    """Original name of one of diffusers' tensors. Raises KeyError where it has none."""
    if (name := _renamed(key, _TO_ORIGINAL)) is None:
        raise KeyError(f"'{key}' has no counterpart in the original layout.")
    return name


def numbered(layer: str) -> tuple[str, str]:
    """'blocks.7.ffn.0' -> ('blocks.#.ffn.0', '7'); no number outside of blocks."""
    match = re.fullmatch(r"(blocks\.)(\d+)(\..*)", layer)
    return (f"{match[1]}#{match[3]}", match[2]) if match else (layer, "")


def _renamed(key: str, names: Mapping[str, str]) -> str | None:
    layer, kind = key, ""
    if not key.endswith(_TABLES):
        layer, _, kind = key.rpartition(".")
        kind = "." + kind
    pattern, number = numbered(layer)
    name = names.get(pattern)
    return None if name is None else name.replace("#", number) + kind


def diffusers_layer(original: str) -> str:
    """diffusers' name of an original layer. Raises KeyError where there is none."""
    pattern, number = numbered(original)
    return _TO_DIFFUSERS[pattern].replace("#", number)


def original_layer(layer: str) -> str:
    """Original name of one of diffusers' layers. Raises KeyError where there is none."""
    pattern, number = numbered(layer)
    return _TO_ORIGINAL[pattern].replace("#", number)


def layer_patterns() -> list[tuple[str, str]]:
    """All layers, (original, diffusers), with "#" for a block's number."""
    return [(ours, theirs) for ours, theirs in _TO_DIFFUSERS.items() if not ours.endswith(_TABLES)]


# ---- autoencoder -----------------------------------------------------------------------------------------------------

_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
_RESIDUAL |= {"shortcut": "conv_shortcut"}
_ENDS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{side}.conv1": f"{side}.conv_in" for side in ("encoder", "decoder")},
    **{f"{side}.head.0": f"{side}.norm_out" for side in ("encoder", "decoder")},
    **{f"{side}.head.2": f"{side}.conv_out" for side in ("encoder", "decoder")},
}
_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.(\d)\.(.+)")
_FLAT = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(.+)")  # 2.1: one list over all levels
_NESTED = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")  # 2.2: one a level


def vae_to_diffusers(state: Mapping[str, Tensor], res_blocks: int = 2) -> dict[str, Tensor]:
    """Names of Wan's own autoencoder (2.1's and 2.2's) -> diffusers'; those that are not known pass unchanged.

    Args:
        state: its tensors.
        res_blocks: residual blocks on each level of the encoder; the decoder has one more.
    """
    return {_vae_name(key, res_blocks): value for key, value in state.items()}


def _vae_name(key: str, res_blocks: int) -> str:
    layer, _, kind = key.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{kind}"
    if match := _MIDDLE.fullmatch(layer):
        side, number, rest = match.groups()
        part = "attentions.0" if number == "1" else f"resnets.{int(number) // 2}"
        return f"{side}.mid_block.{part}.{_RESIDUAL.get(rest, rest)}.{kind}"
    if match := _NESTED.fullmatch(layer):
        side, level, number, rest = match.groups()
        resamples = int(number) == res_blocks + (side == "decoder.up")
        part = side.split(".")[1] + "sampler" if resamples else f"resnets.{number}"
        return f"{side}_blocks.{level}.{part}.{_RESIDUAL.get(rest, rest)}.{kind}"
    if match := _FLAT.fullmatch(layer):
        side, number, rest = match[1], int(match[2]), _RESIDUAL.get(match[3], match[3])
        if side == "encoder.down":
            return f"{side}_blocks.{number}.{rest}.{kind}"
        level, within = divmod(number, res_blocks + 2)
        part = "upsamplers.0" if within > res_blocks else f"resnets.{within}"
        return f"{side}_blocks.{level}.{part}.{rest}.{kind}"
    return key


# ---- text encoder ----------------------------------------------------------------------------------------------------

_TEXT = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def text_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of Wan's UMT5 encoder -> transformers' `UMT5EncoderModel`; those that are not known pass unchanged."""
    return {_text_name(key): value for key, value in state.items()}


def _text_name(key: str) -> str:
    layer, _, kind = key.rpartition(".")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    name = _TEXT.get(match[2] if match else layer)
    if name is None:
        return key
    return f"encoder.block.{match[1]}.{name}.{kind}" if match else f"{name}.{kind}"
