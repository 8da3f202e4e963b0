"""Write a tiny random HunyuanVideo in the layout of its diffusers repository, for tests and for trying configurations.

    python tools/make_tiny_weights.py runs/debug/weights

The folder has what the real repository has (transformer, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2,
scheduler, model_index.json), made by the same classes, in about two megabytes. Its videos are noise.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

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


def make_tiny_weights(folder: Path, seed: int = 0) -> Path:
    """Write the repository to `folder`, whole or not at all, and return it.

    Raises:
        FileExistsError: `folder` holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' is not empty: choose another folder, or remove it.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        torch.manual_seed(seed)
        _randomised(HunyuanVideoTransformer3DModel(**TRANSFORMER)).save_pretrained(partial / "transformer")
        AutoencoderKLHunyuanVideo(**VAE).save_pretrained(partial / "vae")
        FlowMatchEulerDiscreteScheduler(shift=7.0).save_pretrained(partial / "scheduler")
        llama_tokenizer, clip_tokenizer = _llama_tokenizer(), _clip_tokenizer(partial / "tokenizer_2")
        llama_tokenizer.save_pretrained(partial / "tokenizer")
        clip_tokenizer.save_pretrained(partial / "tokenizer_2")
        _llama(len(llama_tokenizer)).save_pretrained(partial / "text_encoder")
        _clip(clip_tokenizer).save_pretrained(partial / "text_encoder_2")
        (partial / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


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


def _randomised(model: torch.nn.Module) -> torch.nn.Module:
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


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        print(make_tiny_weights(arguments.folder, arguments.seed))
    except FileExistsError as error:
        print(f"make_tiny_weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
