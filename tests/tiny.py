"""The smallest complete editors, with random weights."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from icve.editing.pipeline import EditPipeline
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import load_transformer
from icve.models.wan.codec import WanCodec
from icve.models.wan.text import WanTextEncoder
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder


def tiny_editor(heads: int = 1, **defaults) -> EditPipeline:
    torch.manual_seed(0)
    transformer = HunyuanVideoInContextTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=False,
    ).eval()
    with torch.no_grad():  # zero-initialised outputs would make every comparison pass
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return _editor(DCTCodec(), HashedTextEncoder(32, 32), transformer, defaults)


def tiny_wan_editor(weights: Path, **defaults) -> EditPipeline:
    """Of a tiny Wan's own parts, as tools/make_tiny_weights.py writes them."""
    codec, texts = WanCodec(str(weights / "vae")), WanTextEncoder(str(weights / "text_encoder"), dtype="float32")
    return _editor(codec, texts, load_transformer(weights / "transformer").eval(), defaults)


def _editor(codec, texts, transformer, defaults) -> EditPipeline:
    defaults = {"steps": 2, "guidance_scale": 1.0, "shift": 5.0, "num_frames": 5, "height": 32, "width": 32} | defaults
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    editor = EditPipeline(codec, texts, scheduler, transformer, defaults=defaults)
    editor.set_progress_bar_config(disable=True)
    return editor
