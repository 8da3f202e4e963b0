"""A transformer's configuration from its checkpoint's, or from its tensors' shapes; and why weights do not fit one."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from icve.models.hunyuan_video.key_names import is_original
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel as Model
from icve.models.weight_mismatch import block_count, differences

PARAMETERS = frozenset(inspect.signature(Model.__init__).parameters) - {"self"}


def config_from(stored: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration from diffusers' own, from the original's, or from the tensors' shapes.

    Args:
        stored: contents of config.json; {} where there is none.
        tensors: the checkpoint's, in either naming; only shapes are looked at.

    Raises:
        ValueError: no HunyuanVideo transformer, or an image-to-video one.
    """
    if kind := stored.get("image_condition_type"):
        raise ValueError(
            f"These weights are an image-to-video (I2V) model's (image_condition_type {kind!r}): take the "
            "text-to-video (T2V) ones."
        )
    if "num_attention_heads" in stored:
        known = {key: value for key, value in stored.items() if key in PARAMETERS}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    config = config_from_shapes(tensors)
    if "hidden_size" not in stored:
        return config
    patch = stored.get("patch_size", (1, 2, 2))
    return config | {
        "num_attention_heads": stored["heads_num"],
        "attention_head_dim": stored["hidden_size"] // stored["heads_num"],
        "num_layers": stored["mm_double_blocks_depth"],
        "num_single_layers": stored["mm_single_blocks_depth"],
        "mlp_ratio": stored.get("mlp_width_ratio", 4.0),
        "patch_size_t": patch[0],
        "patch_size": patch[1],
        "rope_theta": stored.get("rope_theta", 256),
        "rope_axes_dim": tuple(stored.get("rope_dim_list", (16, 56, 56))),
        "guidance_embeds": stored.get("guidance_embed", config["guidance_embeds"]),
    }


def config_from_shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes that the tensors of a transformer give away, in either naming.

    Raises:
        ValueError: no HunyuanVideo transformer, or one of whose weights a part is missing.
    """
    original = is_original(tensors)
    embed = tensors.get("img_in.proj.weight" if original else "x_embedder.proj.weight")
    if embed is None:
        if any("lora" in key.lower() for key in tensors):
            raise ValueError("These weights are a LoRA's, not a transformer's: load the transformer first, then them.")
        raise ValueError("These weights are no HunyuanVideo transformer: neither 'img_in.proj' nor 'x_embedder.proj'.")
    width, in_channels, patch_t, patch, _ = embed.shape

    def size(a: str, b: str, axis: int) -> int:
        name = a if original else b
        if name not in tensors:
            raise ValueError(f"These weights are not a whole transformer: '{name}' is missing, so download them again.")
        return tensors[name].shape[axis]

    def depth(a: str, b: str) -> int:
        prefix = a if original else b
        return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})

    double = depth("double_blocks.", "transformer_blocks.")
    if double:
        head_dim = size("double_blocks.0.img_attn_q_norm.weight", "transformer_blocks.0.attn.norm_q.weight", 0)
        mlp = size("double_blocks.0.img_mlp.fc1.weight", "transformer_blocks.0.ff.net.0.proj.weight", 0)
    else:
        head_dim = size("single_blocks.0.q_norm.weight", "single_transformer_blocks.0.attn.norm_q.weight", 0)
        mlp = size("single_blocks.0.linear2.weight", "single_transformer_blocks.0.proj_out.weight", 1) - width
    out = size("final_layer.linear.weight", "proj_out.weight", 0)
    pooled = size("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight", 1)
    return {
        "in_channels": in_channels,
        "out_channels": out // (patch_t * patch * patch),
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": double,
        "num_single_layers": depth("single_blocks.", "single_transformer_blocks."),
        "num_refiner_layers": depth(
            "txt_in.individual_token_refiner.blocks.", "context_embedder.token_refiner.refiner_blocks."
        ),
        "mlp_ratio": mlp / width,
        "patch_size": patch,
        "patch_size_t": patch_t,
        "guidance_embeds": any("guidance_" in key for key in tensors),
        "text_embed_dim": size("txt_in.input_embedder.weight", "context_embedder.proj_in.weight", 1),
        "pooled_projection_dim": pooled,
        **({"masks": True} if {"mask_in.proj.weight", "mask_embedder.proj.weight"} & tensors.keys() else {}),
    }


def original_config(model: Model) -> dict[str, Any]:
    """config.json of the original layout."""
    config = model.config
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": [config.patch_size_t, config.patch_size, config.patch_size],
        "mlp_width_ratio": config.mlp_ratio,
        "mlp_act_type": "gelu_tanh",
        "qkv_bias": True,
        "qk_norm": True,
        "qk_norm_type": "rms",
        "text_projection": "single_refiner",
        "use_attention_mask": True,
        "rope_theta": config.rope_theta,
        "hidden_size": config.num_attention_heads * config.attention_head_dim,
        "heads_num": config.num_attention_heads,
        "mm_double_blocks_depth": config.num_layers,
        "mm_single_blocks_depth": config.num_single_layers,
        "rope_dim_list": list(config.rope_axes_dim),
        "guidance_embed": config.guidance_embeds,
        "text_states_dim": config.text_embed_dim,
        "text_states_dim_2": config.pooled_projection_dim,
    }


def mismatch(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str | None:
    """As `differences`, with the likely cause.

    Args:
        expected: what the configured model has, in diffusers' naming.
        given: what the checkpoint holds, in diffusers' naming.
    """
    return differences(expected, given, lambda missing, unexpected: _cause(expected, given, missing, unexpected))


def _cause(
    expected: dict[str, Tensor], given: dict[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> str | None:
    embed = "x_embedder.proj.weight"
    if embed in given and given[embed].shape != expected[embed].shape:
        (width, channels, *patch), (own_width, own_channels, *own_patch) = given[embed].shape, expected[embed].shape
        if channels != own_channels:
            kind = " (image-to-video, I2V, instead of text-to-video, T2V)" if channels > own_channels else ""
            return f"a checkpoint for {channels} input channels, not {own_channels}{kind}"
        if width != own_width:
            return f"a model of width {width}, not {own_width}: set num_attention_heads and attention_head_dim"
        return f"another patch size, {tuple(patch)} (t, h, w) instead of {tuple(own_patch)}"
    for blocks, setting in (
        ("single_transformer_blocks.", "num_single_layers"),
        ("transformer_blocks.", "num_layers"),
        ("refiner_blocks.", "num_refiner_layers"),
    ):
        there, here = block_count(given, blocks), block_count(expected, blocks)
        if there != here:
            return f"another depth: {setting} is {here} where the weights have {there}"
    if any("guidance_embedder" in key for key in missing):
        return "a checkpoint without guidance embedding (not distilled): set guidance_embeds to false"
    if any("guidance_embedder" in key for key in unexpected):
        return "a checkpoint with guidance embedding (distilled): set guidance_embeds to true"
    if missing and not unexpected:
        return "an incomplete download or export"
    for key, setting in (
        ("context_embedder.proj_in.weight", "text_embed_dim"),
        ("time_text_embed.text_embedder.linear_1.weight", "pooled_projection_dim"),
    ):
        if key in given and given[key].shape[1] != expected[key].shape[1]:
            return f"another text encoder: {setting} is {expected[key].shape[1]}, the weights' {given[key].shape[1]}"
    return None
