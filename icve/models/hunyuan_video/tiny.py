"""A tiny random HunyuanVideo in the layout of its diffusers repository: made by the same classes, of noise."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

TEXT_WIDTH, POOLED_WIDTH = 32, 32
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 2,
    "rope_axes_dim": (4, 6, 6),
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "guidance_embeds": True,
}
VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 16}


def write_tiny(folder: Path) -> None:
    """Write what the real repository has (transformer, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2,
    scheduler, model_index.json) into `folder`, about two megabytes; torch's generator decides the weights."""
    llama_tokenizer, clip_tokenizer = _llama_tokenizer(), _clip_tokenizer(folder / "tokenizer_2")
    parts: dict[str, Any] = {
        "transformer": _randomised(HunyuanVideoTransformer3DModel(**TRANSFORMER)),
        "vae": AutoencoderKLHunyuanVideo(**VAE),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "tokenizer": llama_tokenizer,
        "tokenizer_2": clip_tokenizer,
        "text_encoder": _llama(len(llama_tokenizer)),
        "text_encoder_2": _clip(clip_tokenizer),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")


MODEL_INDEX = {
    "_class_name": "HunyuanVideoPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "LlamaModel"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
}


def _randomised(model: Any) -> Any:
    """Every parameter random, those too that a fresh model has at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def _llama_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, between the special tokens of LLaMA 3: any text can be written with them."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<pad>"]
    vocabulary = {word: number for number, word in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin = specials[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=specials[0],
        eos_token=specials[1],
        pad_token=specials[2],
        padding_side="right",
        model_max_length=256,
    )


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own class on a vocabulary of single letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _llama(vocabulary: int) -> LlamaModel:
    # Four layers: the state that HunyuanVideo reads, the third from the end, lies in the middle.
    return LlamaModel(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
        )
    )


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
