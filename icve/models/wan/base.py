"""Wan's autoencoder and text encoder, from a folder as it was downloaded: diffusers' layout or Wan's own.

Of Wan's own files, which are torch's, copies in diffusers' and transformers' layout are made once, in the user's cache.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKLWan
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from icve.models.checkpoint_files import open_shards, read_tensors, shard_tensors
from icve.models.converted import converted
from icve.models.wan.codec import RESIDUAL, WanCodec
from icve.models.wan.key_names import text_to_transformers, vae_to_diffusers
from icve.models.wan.text import TOKENIZER_FILES, UMT5, WanTextEncoder
from icve.models.weight_files import foreign_format
from icve.models.weight_mismatch import differences
from icve.runtime.atomic import new_folder

_TOKENIZER = "google/umt5-xxl"  # in Wan's own folders

# Mean and standard deviation of 2.2's latents (Wan2.2's modules); 2.1's are diffusers' defaults.
_MEAN_22 = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
_STD_22 = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


def open_base(folder: str | os.PathLike[str]) -> tuple[WanCodec, WanTextEncoder]:
    """The codec and the text encoder of Wan 2.1 or 2.2.

    Args:
        folder: a diffusers repository (`vae/`, `text_encoder/`, `tokenizer/`), or Wan's own (`Wan2.1_VAE.pth` or
            `Wan2.2_VAE.pth`, `models_t5_umt5-xxl-enc-bf16.pth`, `google/umt5-xxl/`).

    Raises:
        FileNotFoundError: a part is missing; the sentence says where it belongs.
        ValueError: a part is damaged or another model's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            (foreign_format(folder) if folder.is_file() else None)
            or f"There is no folder '{folder}': download Wan (Wan-AI/Wan2.1-T2V-1.3B-Diffusers, for one) and give its "
            "folder."
        )
    return WanCodec(str(_vae_folder(folder))), WanTextEncoder(str(_text_folder(folder)))


def _vae_folder(folder: Path) -> Path:
    if (folder / "vae").is_dir():
        return folder / "vae"
    file = _only(folder, "Wan*_VAE.pth", "the video autoencoder, vae/ (diffusers' layout) or Wan2.1_VAE.pth (Wan's)")
    return converted("wan-vae", file, lambda output: _export(load_vae(file), output))


def _text_folder(folder: Path) -> Path:
    if (folder / "text_encoder").is_dir():
        return folder / "text_encoder"
    what = "the text encoder, text_encoder/ (diffusers' layout) or models_t5_umt5-xxl-enc-bf16.pth (Wan's)"
    file = _only(folder, "models_t5_*.pth", what)
    tokenizer = folder / _TOKENIZER
    if not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(f"'{folder}' lacks '{_TOKENIZER}/tokenizer.json', the text encoder's: put it there.")
    return converted("umt5", file, lambda output: _export_text(file, tokenizer, output))


def _only(folder: Path, pattern: str, what: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        found = f"several ({', '.join(file.name for file in files)})" if files else "none"
        raise FileNotFoundError(f"'{folder}' must hold one file with {what}, and it holds {found}.")
    return files[0]


def convert_codec(source: Path, output: Path, dtype: torch.dtype | None, max_shard_size: int | None) -> Any:
    """Write the autoencoder at a file or folder, or in a repository's `vae/`, in diffusers' layout; returns it.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `load_vae`; or `output` holds something.
    """
    model = load_vae(source, dtype)
    _export(model, output, max_shard_size)
    return model


def load_vae(path: Path, dtype: torch.dtype | None = None) -> AutoencoderKLWan:
    """Build the autoencoder from a diffusers folder, or from Wan's `.pth` file or a folder with it.

    Raises:
        FileNotFoundError: nothing there, or no weights in the folder.
        ValueError: a damaged file, tensors that are not finite, or another model's weights.
    """
    if path.is_dir():
        inside = [path / "vae", *sorted(path.glob("Wan*_VAE.pth"))]
        path = next((place for place in inside if place.exists()), path)
    if not path.exists():
        raise FileNotFoundError(f"No autoencoder at '{path}': give Wan's vae folder or its Wan2.1_VAE.pth.")
    shards = open_shards(path)
    stored = shard_tensors(shards)
    rename = vae_to_diffusers if "conv2.weight" in stored else dict
    given = rename(stored)
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else _vae_config(path, given)
    with torch.device("meta"):
        vae: Any = AutoencoderKLWan.from_config(config)
    if problem := differences(vae.state_dict(), given, lambda *_: None):
        raise ValueError(f"The weights of '{path}' are not a Wan autoencoder's: {problem}.")
    vae.load_state_dict(read_tensors(shards, rename, "cpu", dtype), assign=True)
    return vae.eval()


def _vae_config(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration from the tensors' shapes: 2.1's has residual blocks only, 2.2's cuts patches first."""
    names = ("encoder.conv_in.weight", "post_quant_conv.weight", "decoder.norm_out.gamma")
    if any(name not in tensors for name in names):
        raise ValueError(f"'{path}' is not Wan's autoencoder: it has no 'encoder.conv1' or 'conv2'.")
    encoder, latents, decoder = (tensors[name].shape for name in names)
    config: dict[str, Any] = {"base_dim": encoder[0], "z_dim": latents[0], "decoder_base_dim": decoder[0]}
    if encoder[1] == 3:
        return config
    if latents[0] != len(_MEAN_22):
        raise ValueError(f"'{path}' has {latents[0]} latent channels, where Wan 2.2's autoencoder has {len(_MEAN_22)}.")
    return (
        config
        | RESIDUAL
        | {
            "in_channels": encoder[1],
            "out_channels": encoder[1],
            "latents_mean": list(_MEAN_22),
            "latents_std": list(_STD_22),
        }
    )


def _export(model: Any, folder: Path, max_shard_size: int | None = None) -> None:
    with new_folder(folder) as partial:
        model.save_pretrained(partial, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))


def _export_text(file: Path, tokenizer: Path, folder: Path) -> None:
    shards = open_shards(file)
    given = text_to_transformers(shard_tensors(shards))
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**_text_config(file, given)))
    expected = {key: value for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    if problem := differences(expected, given, lambda *_: None):
        raise ValueError(f"The weights of '{file}' are not Wan's UMT5 encoder: {problem}.")
    state = read_tensors(shards, text_to_transformers)
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]}, assign=True)
    model.tie_weights()
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, partial / name)


def _text_config(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """UMT5's configuration from the tensors' shapes."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    names = ("shared.weight", f"{attention}.q.weight", f"{attention}.relative_attention_bias.weight")
    feed_forward = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    if any(name not in tensors for name in (*names, feed_forward)):
        raise ValueError(f"'{file}' is not Wan's UMT5 encoder, whose first tensor is 'token_embedding.weight'.")
    (words, width), (inner, _), (buckets, heads) = (tensors[name].shape for name in names)
    layers = {key.split(".")[2] for key in tensors if key.startswith("encoder.block.")}
    return UMT5 | {
        "vocab_size": words,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": tensors[feed_forward].shape[0],
        "num_layers": len(layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }
