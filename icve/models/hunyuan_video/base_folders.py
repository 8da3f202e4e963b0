"""Where the parts of HunyuanVideo lie: in diffusers' repository, or in Tencent's `ckpts` tree."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from icve.data.media.media_paths import foreign_path
from icve.models.weight_files import foreign_format

PARTS = ("transformer", "vae", "llama", "clip")
_TENCENT = "hunyuan-video-t2v-720p"


@dataclass(frozen=True)
class BasePaths:
    """Folders of HunyuanVideo's parts; None where a part is absent and was not asked for.

    Args:
        transformer: for `load_transformer`.
        vae: for `icve.models.hunyuan_video.codec_checkpoint.load_vae`; diffusers' layout, or Tencent's
            `pytorch_model.pt`.
        llama, clip: text models in transformers' layout.
        llama_tokenizer, clip_tokenizer: the same folders in Tencent's tree, folders of their own in diffusers'.
    """

    transformer: Path | None
    vae: Path | None
    llama: Path | None
    clip: Path | None
    llama_tokenizer: Path | None
    clip_tokenizer: Path | None

    def folder(self, part: str) -> Path:
        """The folder of a part that was asked for."""
        return Path(getattr(self, part))


def resolve_base(folder: str | os.PathLike[str], parts: Collection[str] = PARTS) -> BasePaths:
    """Find HunyuanVideo's parts in a folder as it was downloaded.

    Args:
        folder: a diffusers repository (`transformer/`, `vae/`, `text_encoder/`, `text_encoder_2/`, `tokenizer/`,
            `tokenizer_2/`), Tencent's `ckpts` (`hunyuan-video-t2v-720p/`, `text_encoder/`, `text_encoder_2/`), or a
            folder with `ckpts` in it.
        parts: which must be there, of "transformer", "vae", "llama", "clip".

    Raises:
        FileNotFoundError: no such folder, or a part is missing: the sentence says where it belongs.
        ValueError: an unknown part.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"HunyuanVideo has no part '{unknown[0]}': there are {', '.join(PARTS)}.")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            (foreign_format(folder) if folder.is_file() else foreign_path(folder))
            or f"There is no folder '{folder}': download HunyuanVideo (hunyuanvideo-community/HunyuanVideo, or "
            "tencent/HunyuanVideo with its text encoders) and give its folder."
        )
    tencent = _tencent_root(folder)
    where = {"transformer": "transformer", "vae": "vae", "llama": "text_encoder", "clip": "text_encoder_2"}
    if tencent:
        where |= {"transformer": f"{_TENCENT}/transformers", "vae": f"{_TENCENT}/vae"}
    root = tencent or folder
    found = {part: root / name if (root / name).is_dir() else None for part, name in where.items()}
    if not tencent and not any(found.values()):
        raise FileNotFoundError(
            f"'{folder}' is no HunyuanVideo folder: it has neither transformer/, vae/ and text_encoder/ (diffusers' "
            f"layout) nor {_TENCENT}/ (Tencent's)."
        )
    for part in parts:
        if found[part] is None:
            raise FileNotFoundError(f"'{root}' lacks '{where[part]}', the {_DESCRIPTIONS[part]}: put it there.")

    def tokenizer(part: str, name: str) -> Path | None:
        return root / name if (root / name).is_dir() else found[part]

    return BasePaths(
        **found, llama_tokenizer=tokenizer("llama", "tokenizer"), clip_tokenizer=tokenizer("clip", "tokenizer_2")
    )


_DESCRIPTIONS = {
    "transformer": "text-to-video transformer",
    "vae": "video autoencoder",
    "llama": "language model of LLaVA-LLaMA-3-8B",
    "clip": "CLIP-L text model",
}


def tencent_transformer(folder: Path) -> Path | None:
    """The transformer's folder in Tencent's tree, or None where this is no such tree."""
    root = _tencent_root(folder)
    inner = root / _TENCENT / "transformers" if root else folder / "transformers"
    return inner if inner.is_dir() else None


def _tencent_root(folder: Path) -> Path | None:
    return next((root for root in (folder, folder / "ckpts") if (root / _TENCENT).is_dir()), None)
