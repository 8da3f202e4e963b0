"""HunyuanVideo's video autoencoder from Tencent's or diffusers' files, and to diffusers' layout.

diffusers kept the original's parameter names, so only the wrapping ("state_dict", "vae.") and the configuration differ.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKLHunyuanVideo
from torch import Tensor

from icve.models.checkpoint_files import open_shards, read_tensors, shard_tensors
from icve.models.hunyuan_video.configs import mismatch
from icve.runtime.atomic import new_folder

# diffusers' names of the configuration values that both have, and the original's where they differ.
_SETTINGS = {
    name: name
    for name in (
        "in_channels",
        "out_channels",
        "latent_channels",
        "block_out_channels",
        "layers_per_block",
        "act_fn",
        "norm_num_groups",
        "scaling_factor",
        "spatial_compression_ratio",
        "mid_block_add_attention",
    )
} | {"temporal_compression_ratio": "time_compression_ratio"}


def load_vae(
    folder_or_file: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> AutoencoderKLHunyuanVideo:
    """Build the autoencoder from a diffusers folder, or from Tencent's `vae` folder or `pytorch_model.pt`.

    Args:
        folder_or_file: weights with `config.json` beside them; without it, sizes are read from the shapes, and the
            scaling factor and the number of normalisation groups are those of the released model.
        device: where it is built.
        dtype: what the weights become; None keeps what is stored.

    Raises:
        FileNotFoundError: nothing there, or no weights in the folder.
        ValueError: a damaged file, tensors that are not finite, or another model's weights.
    """
    path = Path(folder_or_file)
    if not path.exists():
        raise FileNotFoundError(f"No autoencoder at '{path}': give HunyuanVideo's vae folder or its weights file.")
    shards = open_shards(path)
    stored = shard_tensors(shards)
    # Beside the autoencoder ("vae.") a training file may hold parts that only its training needed.
    prefix = "vae." if any(key.startswith("vae.") for key in stored) else ""

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    given = rename(stored)
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config = vae_config(config, given)
    except ValueError as error:
        raise ValueError(f"The autoencoder '{path}' cannot be loaded: {error}") from error
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(**config)
    if problem := mismatch(vae.state_dict(), given):
        raise ValueError(f"The weights of '{path}' do not fit their configuration: {problem}.")
    vae.load_state_dict(read_tensors(shards, rename, device, dtype), assign=True)
    return vae.eval()


def export_vae(vae: AutoencoderKLHunyuanVideo, folder: str | Path, max_shard_size: int | None = None) -> None:
    """Write diffusers' `config.json` and safetensors to `folder`, whole or not at all.

    Raises:
        FileExistsError: `folder` holds something.
    """
    with new_folder(folder) as partial:
        sizes: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        vae.save_pretrained(partial, **sizes)


def vae_config(stored: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration from diffusers', from the original's, or from the tensors' shapes.

    Args:
        stored: contents of config.json; {} where there is none.
        tensors: the autoencoder's; only shapes are looked at.

    Raises:
        ValueError: not HunyuanVideo's autoencoder.
    """
    config = _config_from_shapes(tensors)
    for name, original in _SETTINGS.items():
        if (value := stored.get(name, stored.get(original))) is not None:
            config[name] = tuple(value) if isinstance(value, list) else value
    blocks = len(config["block_out_channels"])
    config["down_block_types"] = ("HunyuanVideoDownBlock3D",) * blocks
    config["up_block_types"] = ("HunyuanVideoUpBlock3D",) * blocks
    return config


def _config_from_shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    widths: list[int] = []
    while (key := f"encoder.down_blocks.{len(widths)}.resnets.0.conv1.conv.weight") in tensors:
        widths.append(tensors[key].shape[0])
    layers = 0
    while f"encoder.down_blocks.0.resnets.{layers}.conv1.conv.weight" in tensors:
        layers += 1
    ends = ("encoder.conv_in.conv.weight", "decoder.conv_out.conv.weight", "post_quant_conv.weight")
    if not widths or any(key not in tensors for key in ends):
        raise ValueError("these weights are not HunyuanVideo's autoencoder, whose first is 'encoder.conv_in.conv'.")
    return {
        "in_channels": tensors[ends[0]].shape[1],
        "out_channels": tensors[ends[1]].shape[0],
        "latent_channels": tensors[ends[2]].shape[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "mid_block_add_attention": any(".mid_block.attentions." in key for key in tensors),
    }
