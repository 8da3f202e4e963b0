"""A tiny random Wan in the layout of its diffusers repository: made by the same classes, of noise."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

TEXT_WIDTH = 32
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 64,
    "num_layers": 3,
    "text_dim": TEXT_WIDTH,
}
VAE: dict[str, Any] = {"base_dim": 8}
# Wan 2.2's: 48 channels, patches of 2x2 pixels first.
VAE_22: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def write_tiny(folder: Path) -> None:
    """Write what Wan 2.1's repository has (transformer, vae, text_encoder, tokenizer, scheduler, model_index.json)
    into `folder`, about two megabytes; torch's generator decides the weights."""
    _write(folder, TRANSFORMER, VAE)


def write_tiny_22(folder: Path) -> None:
    """The same of Wan 2.2's 5B."""
    _write(folder, TRANSFORMER | {"in_channels": 48, "out_channels": 48}, VAE_22)


def _write(folder: Path, transformer: dict[str, Any], vae: dict[str, Any]) -> None:
    tokenizer = _tokenizer()
    parts: dict[str, Any] = {
        "transformer": _randomised(WanTransformer3DModel(**transformer)),
        "vae": AutoencoderKLWan(**vae),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        ),
        "tokenizer": tokenizer,
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=TEXT_WIDTH,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")


MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def _randomised(model: Any) -> Any:
    """Every parameter random, those too that a fresh model has at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and UMT5's end mark after them: any text can be written with them."""
    specials = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
