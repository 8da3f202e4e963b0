"""An editor made of published weights: an ICVE transformer, HunyuanVideo's autoencoder and text encoders."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from icve.editing.editors import fingerprint, transformer_width

if TYPE_CHECKING:
    from icve.editing.pipeline import EditPipeline

log = logging.getLogger(__name__)

# The clips of the release; its other settings are the pipeline's own defaults.
CLIP = {"num_frames": 77, "height": 480, "width": 768}


def released_editor(
    transformer: str | os.PathLike,
    base: str | os.PathLike,
    device: str,
    precision: str = "auto",
    processes: int = 1,
    say: Callable[[str], object] = log.info,
) -> EditPipeline:
    """Build the editor with the release's settings.

    Args:
        transformer: ICVE weights in any layout that `load_transformer` knows.
        base: HunyuanVideo in diffusers' or in Tencent's layout (see `icve.models.base_folders.resolve_base`).
        device: where it will run.
        precision: of the transformer, see `icve.runtime.precision.editing_dtype`; "auto" is bfloat16 on an accelerator.
        processes: that edit together.
        say: called with what was measured to choose the precision, in one line.

    Raises:
        FileNotFoundError: a part is missing; the sentence says where it belongs.
        ValueError: a part is damaged or another model's.
    """
    import torch
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    from icve.data.latent_grid import LatentGrid
    from icve.editing.pipeline import DEFAULTS, EditPipeline
    from icve.models.base_folders import resolve_base
    from icve.models.hunyuan_video.codec import HunyuanVideoCodec
    from icve.models.hunyuan_video.text import HunyuanTextEncoder
    from icve.models.loading import load_transformer
    from icve.runtime.precision import editing_dtype

    paths = resolve_base(base, ("vae", "llama", "clip"))
    codec = HunyuanVideoCodec(pretrained=str(diffusers_vae(paths.folder("vae"))))
    text_encoder = HunyuanTextEncoder(llama=str(paths.folder("llama")), clip=str(paths.folder("clip")))
    tokens = 2 * LatentGrid().tokens(CLIP["height"], CLIP["width"], CLIP["num_frames"])
    width = transformer_width(Path(transformer))
    dtype, measured = editing_dtype(precision, torch.device(device).type, processes, tokens, width, torch.bfloat16)
    if measured:
        say(measured)
    dit = load_transformer(transformer, device=device, dtype=dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=DEFAULTS["shift"])
    return EditPipeline(codec, text_encoder, scheduler, dit, defaults=DEFAULTS | CLIP).to(device)


def diffusers_vae(folder: Path) -> Path:
    """An autoencoder's folder in diffusers' layout: itself, or a copy converted once into the user's cache."""
    if any(folder.glob("*.safetensors")):
        return folder
    from icve.models.hunyuan_video.codec_checkpoint import export_vae, load_vae

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    converted = cache / "icve" / f"vae-{fingerprint(folder)}"
    if not converted.is_dir():
        with contextlib.suppress(FileExistsError):  # another process was faster
            export_vae(load_vae(folder), converted)
    return converted
