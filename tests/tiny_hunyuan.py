"""Tiny random HunyuanVideo parts, saved to disk in the formats in which the real ones are published."""

from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKLHunyuanVideo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

TEXT_DIM, POOLED_DIM = 16, 12  # what the tiny text encoder puts out
VOCABULARY = 320
CORPUS = ("make the red circle blue", "remove it", "add a green square on the left", "turn it into a watercolour")
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 8, "patch_size": 4, "projection_dim": 8}


def save_tiny_vae(folder: Path, seed: int = 0, **save_options) -> Path:
    """AutoencoderKLHunyuanVideo of 80 thousand parameters: config.json and safetensors in `folder`."""
    torch.manual_seed(seed)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    _stir(vae).save_pretrained(folder, **save_options)
    return Path(folder)


def save_tiny_llama(
    folder: Path,
    kind: Literal["model", "causal", "llava"] = "model",
    seed: int = 0,
    tokenizer: bool = True,
    **save_options,
) -> Path:
    """A LLaMA of four layers, alone, with its head or inside a LLaVA, with a byte-level tokenizer as LLaMA-3's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_DIM,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=512,
    )
    if kind == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=config, vision_config=CLIPVisionConfig(**VISION)))
    else:
        model = LlamaModel(config) if kind == "model" else LlamaForCausalLM(config)
    _stir(model).save_pretrained(folder, **save_options)
    if tokenizer:
        save_llama_tokenizer(folder)
    return Path(folder)


def save_tiny_clip(
    folder: Path, kind: Literal["text", "whole"] = "text", seed: int = 0, tokenizer: bool = True, **save_options
) -> Path:
    """A CLIP text model, alone or inside a whole CLIP, with CLIP's own tokenizer on a small vocabulary."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY + 256,
        hidden_size=POOLED_DIM,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=8,
        bos_token_id=VOCABULARY + 254,
        eos_token_id=VOCABULARY + 255,
        pad_token_id=VOCABULARY + 255,
    )
    if kind == "whole":
        vision = CLIPVisionConfig(**VISION).to_dict()
        model = CLIPModel(CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=8))
    else:
        model = CLIPTextModel(config)
    _stir(model).save_pretrained(folder, **save_options)
    if tokenizer:
        save_clip_tokenizer(folder)
    return Path(folder)


def save_tiny_hunyuan(folder: Path, seed: int = 0) -> dict[str, Path]:
    """`vae`, `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2`, as in diffusers' HunyuanVideo folder.

    Returns:
        {"vae", "llama", "clip"}: what to give to HunyuanVideoCodec and HunyuanTextEncoder.
    """
    folder = Path(folder)
    save_llama_tokenizer(folder / "tokenizer")
    save_clip_tokenizer(folder / "tokenizer_2")
    return {
        "vae": save_tiny_vae(folder / "vae", seed),
        "llama": save_tiny_llama(folder / "text_encoder", seed=seed, tokenizer=False),
        "clip": save_tiny_clip(folder / "text_encoder_2", seed=seed, tokenizer=False),
    }


def save_llama_tokenizer(folder: Path, begin: bool = True) -> Path:
    """A byte-level BPE that begins texts with a special token (unless told otherwise) and has no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    if begin:
        template = "<|begin_of_text|> $A"
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(special[0], 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    fast.save_pretrained(folder)
    return Path(folder)


def save_clip_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer with single letters and two merges as its whole vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "re", "red</w>"]
    tokens += [f"<|unused{number}|>" for number in range(VOCABULARY + 254 - len(tokens))]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")]).save_pretrained(folder)
    return Path(folder)


def _stir(model: nn.Module) -> nn.Module:
    """Random biases and norms as well, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
