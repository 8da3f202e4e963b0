"""HunyuanVideo's autoencoder and text encoders, from a folder as it was downloaded."""

import os
from pathlib import Path
from typing import Any

import torch

from icve.models.converted import converted
from icve.models.hunyuan_video.base_folders import resolve_base
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.codec_checkpoint import export_vae, load_vae
from icve.models.hunyuan_video.text import HunyuanTextEncoder


def open_base(folder: str | os.PathLike[str]) -> tuple[HunyuanVideoCodec, HunyuanTextEncoder]:
    """The codec and the text encoder of HunyuanVideo in diffusers' or in Tencent's layout (see `resolve_base`).

    Raises:
        FileNotFoundError: a part is missing; the sentence says where it belongs.
        ValueError: a part is damaged or another model's.
    """
    paths = resolve_base(folder, ("vae", "llama", "clip"))
    codec = HunyuanVideoCodec(pretrained=str(diffusers_vae(paths.folder("vae"))))
    return codec, HunyuanTextEncoder(llama=str(paths.folder("llama")), clip=str(paths.folder("clip")))


def diffusers_vae(folder: Path) -> Path:
    """An autoencoder's folder in diffusers' layout: itself, or a copy converted once into the user's cache."""
    if any(folder.glob("*.safetensors")):
        return folder
    return converted("vae", folder, lambda output: export_vae(load_vae(folder), output))


def convert_codec(source: Path, output: Path, dtype: torch.dtype | None, max_shard_size: int | None) -> Any:
    """Write the autoencoder at a file or folder, or in a repository's `vae/`, in diffusers' layout; returns it.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `load_vae` and `export_vae`.
    """
    inside = source / "vae"
    model = load_vae(inside if inside.is_dir() else source, dtype=dtype)
    export_vae(model, output, max_shard_size)
    return model
