"""Adapters of every layout to test with, and every way of applying them to the tiny editor."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from icve.cli.convert import build_parser
from icve.models.loading import load_transformer
from icve.models.lora import fuse_adapter

NAN, INF = float("nan"), float("inf")
D, RANK, ALPHA = 16, 4, 2.0
MLP = 4 * D
# Original layer: (rows, columns) and the diffusers' layers that its rows are.
QKV = ("to_q", "to_k", "to_v")
LAYERS = {
    "double_blocks.0.img_attn_qkv": (3 * D, D, [f"transformer_blocks.0.attn.{x}" for x in QKV]),
    "double_blocks.0.img_attn_proj": (D, D, ["transformer_blocks.0.attn.to_out.0"]),
    "double_blocks.0.txt_attn_qkv": (3 * D, D, [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"]),
    "double_blocks.0.txt_attn_proj": (D, D, ["transformer_blocks.0.attn.to_add_out"]),
    "double_blocks.0.img_mod.linear": (6 * D, D, ["transformer_blocks.0.norm1.linear"]),
    "double_blocks.0.img_mlp.fc1": (MLP, D, ["transformer_blocks.0.ff.net.0.proj"]),
    "double_blocks.0.txt_mlp.fc2": (D, MLP, ["transformer_blocks.0.ff_context.net.2"]),
    "single_blocks.0.linear1": (
        3 * D + MLP,
        D,
        [*(f"single_transformer_blocks.0.attn.{x}" for x in QKV), "single_transformer_blocks.0.proj_mlp"],
    ),
    "single_blocks.0.linear2": (D, D + MLP, ["single_transformer_blocks.0.proj_out"]),
    "single_blocks.0.modulation.linear": (3 * D, D, ["single_transformer_blocks.0.norm.linear"]),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": (
        3 * D,
        D,
        [f"context_embedder.token_refiner.refiner_blocks.0.attn.{x}" for x in QKV],
    ),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1": (
        MLP,
        D,
        ["context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj"],
    ),
    "final_layer.linear": (64, D, ["proj_out"]),
}
COMFYUI = {
    "double_blocks.0.img_attn_qkv": "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_attn_proj": "double_blocks.0.img_attn.proj",
    "double_blocks.0.txt_attn_qkv": "double_blocks.0.txt_attn.qkv",
    "double_blocks.0.txt_attn_proj": "double_blocks.0.txt_attn.proj",
    "double_blocks.0.img_mod.linear": "double_blocks.0.img_mod.lin",
    "double_blocks.0.img_mlp.fc1": "double_blocks.0.img_mlp.0",
    "double_blocks.0.txt_mlp.fc2": "double_blocks.0.txt_mlp.2",
    "single_blocks.0.modulation.linear": "single_blocks.0.modulation.lin",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": "txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1": "txt_in.individual_token_refiner.blocks.0.mlp.0",
}
TO_Q = "transformer_blocks.0.attn.to_q"


def named(matrices, key, names=("lora_A.weight", "lora_B.weight"), alpha=None, dtype=None):
    """Tensors of a file: `key(layer)` + "." + names; an alpha per layer unless None."""
    state = {}
    for layer, (a, b) in matrices.items():
        state |= {f"{key(layer)}.{name}": m.to(dtype or m.dtype).clone() for name, m in zip(names, (a, b), strict=True)}
        if alpha is not None:
            state[f"{key(layer)}.alpha"] = torch.tensor(alpha)
    return state


def flat(prefix):
    return lambda layer: prefix + layer.replace(".", "_")


def dotted(prefix):
    return lambda layer: prefix + layer


def omi(layer):
    """OneTrainer's name: the original one with the number of the part of a stack."""
    name, layers = next((name, layers) for name, (_, _, layers) in LAYERS.items() if layer in layers)
    name = name.replace("fc1", "fc0")
    return name if len(layers) == 1 else f"{name}.{layers.index(layer)}"


KOHYA = ("lora_down.weight", "lora_up.weight")
HEADER = {"transformer.r": RANK, "transformer.lora_alpha": 2, "transformer.bias": "none", "transformer.use_dora": False}
# name: (of the original layers?, how keys are made, names of the halves, alpha, header, scale of all layers)
LAYOUTS = {
    "musubi": (True, flat("lora_unet_"), KOHYA, ALPHA, {"ss_network_alpha": "9"}, 0.5),
    "lycoris": (True, flat("lycoris_"), KOHYA, ALPHA, {}, 0.5),
    "hunyuan-i2v": (True, flat("Hunyuan_video_I2V_lora_"), KOHYA, ALPHA, {}, 0.5),
    "comfyui": (True, dotted("diffusion_model."), ("lora_A.weight", "lora_B.weight"), None, {}, 1.0),
    "comfyui-alpha": (True, dotted("diffusion_model."), ("lora_A.weight", "lora_B.weight"), ALPHA, {}, 0.5),
    "comfyui-own-names": (
        True,
        lambda layer: "diffusion_model." + COMFYUI.get(layer, layer),
        KOHYA,
        ALPHA,
        {"modelspec.architecture": "hunyuan-video"},
        0.5,
    ),
    "original": (True, dotted(""), ("lora_A.weight", "lora_B.weight"), None, {}, 1.0),
    "diffusers": (False, dotted("transformer."), ("lora_A.weight", "lora_B.weight"), None, {}, 1.0),
    "diffusers-bare": (False, dotted(""), ("lora_A.weight", "lora_B.weight"), None, {}, 1.0),
    "diffusers-alpha": (False, dotted("transformer."), ("lora_A.weight", "lora_B.weight"), 1.0, HEADER, 0.25),
    "diffusers-header": (False, dotted("transformer."), ("lora_A.weight", "lora_B.weight"), None, HEADER, 0.5),
    "diffusers-rslora": (
        False,
        dotted("transformer."),
        ("lora_A.weight", "lora_B.weight"),
        None,
        HEADER | {"transformer.use_rslora": True},
        2 / math.sqrt(RANK),
    ),
    "finetrainers": (
        False,
        dotted("transformer."),
        ("lora_A.weight", "lora_B.weight"),
        None,
        {"lora_config": '{"r": 4, "lora_alpha": 2, "init_lora_weights": true, "target_modules": ["to_q"]}'},
        0.5,
    ),
    "diffusers-old": (False, dotted("transformer."), ("lora.down.weight", "lora.up.weight"), None, {}, 1.0),
    "adapter-name": (False, dotted("transformer."), ("lora_A.default.weight", "lora_B.default.weight"), None, {}, 1.0),
    "onetrainer": (False, dotted("transformer."), KOHYA, ALPHA, {}, 0.5),
    "onetrainer-flat": (False, flat("lora_transformer_"), KOHYA, ALPHA, {}, 0.5),
    "adapter-name-2": (
        False,
        lambda layer: "transformer._orig_mod." + layer.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
        ("lora_A.my-style.weight", "lora_B.my-style.weight"),
        None,
        {},
        1.0,
    ),
    "onetrainer-omi": (False, lambda layer: "transformer." + omi(layer), KOHYA, ALPHA, {}, 0.5),
    "compiled": (True, dotted("model.diffusion_model._orig_mod."), ("lora_A", "lora_B"), None, {}, 1.0),
}


def write(file, layout, matrices, by_diffusers, dtype=None):
    original, key, names, alpha, header, scale = LAYOUTS[layout]
    state = named(matrices if original else by_diffusers, key, names, alpha, dtype)
    metadata = {"format": "pt", **{k: v for k, v in header.items() if not k.startswith("transformer.")}}
    if any(k.startswith("transformer.") for k in header):
        metadata["lora_adapter_metadata"] = json.dumps(header)
    save_file(state, file, metadata)
    return scale


def peft_folder(folder, by_diffusers, file="adapter_model.safetensors", **settings):
    folder.mkdir(exist_ok=True)
    save_file(named(by_diffusers, dotted("base_model.model.")), folder / file)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "use_dora": False, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def weights(transformer):
    return {name: p.detach().clone() for name, p in transformer.state_dict().items()}


def changes(before, after):
    """Layers whose weights differ: their differences."""
    return {
        name.removesuffix(".weight"): after[name] - value
        for name, value in before.items()
        if not torch.equal(after[name], value)
    }


def convert(*arguments):
    """`icve convert`, whose errors are raised."""
    parsed = build_parser().parse_args([str(argument) for argument in arguments])
    return parsed.run(parsed)


def fused(path, editor, tmp_path):
    fuse_adapter(editor.transformer, path)
    return weights(editor.transformer)


def loaded(path, editor, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    editor.load_lora_weights(path)
    editor.transformer.fuse_lora()
    editor.transformer.unload_lora()
    return weights(editor.transformer)


def merged(path, editor, tmp_path):
    editor.transformer.save_pretrained(tmp_path / "model")
    convert("merge", "--model", tmp_path / "model", "--lora", path, "--output", tmp_path / "merged")
    return weights(load_transformer(tmp_path / "merged"))


def converted(path, editor, tmp_path):
    convert("lora", "--input", path, "--output", tmp_path / "converted" / "comfyui.safetensors")
    return fused(tmp_path / "converted", editor, tmp_path)


def assert_scales(change, by_diffusers, scale):
    """Every layer changed by scale · B·A, and no other layer; `scale` a number or one by layer."""
    assert change.keys() == by_diffusers.keys()
    for layer, (a, b) in by_diffusers.items():
        expected = scale.get(layer, scale[None]) if isinstance(scale, dict) else scale
        torch.testing.assert_close(change[layer], expected * b @ a, atol=2e-6, rtol=1e-4, msg=lambda m, n=layer: n + m)
