"""Adapters of every layout: the scale each layer gets, by every way of applying them, and what is refused."""

import json
import logging
import math
import shutil

import pytest
import torch
from diffusers.utils import hub_utils
from huggingface_hub import errors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from icve.model import adapter_files, load_transformer
from icve.model.adapter_downloads import local_adapter
from icve.model.adapter_files import check_fits, read_adapter
from icve.model.adapter_names import known_layer
from icve.model.key_names import layer_patterns
from icve.model.lora import LORA_FILE, fuse_adapter, to_comfyui
from tests.tiny import tiny_editor

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


@pytest.fixture(scope="module")
def matrices():
    """A and B of every original layer."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(RANK, columns, generator=generator) * 0.1,
            torch.randn(rows, RANK, generator=generator) * 0.1,
        )
        for name, (rows, columns, _) in LAYERS.items()
    }


@pytest.fixture(scope="module")
def by_diffusers(matrices):
    """A and B of every diffusers' layer."""
    parts = {}
    for name, (a, b) in matrices.items():
        layers = LAYERS[name][2]
        sizes = [len(b)] if len(layers) == 1 else [D, D, D, len(b) - 3 * D][: len(layers)]
        parts |= {layer: (a, piece.clone()) for layer, piece in zip(layers, b.split(sizes), strict=True)}
    return parts


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


def fused(path, editor, tmp_path, tool):
    fuse_adapter(editor.transformer, path)
    return weights(editor.transformer)


def loaded(path, editor, tmp_path, tool):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    editor.load_lora_weights(path)
    editor.transformer.fuse_lora()
    editor.transformer.unload_lora()
    return weights(editor.transformer)


def merged(path, editor, tmp_path, tool):
    editor.transformer.save_pretrained(tmp_path / "model")
    tool("merge_lora").merge(tmp_path / "model", path, tmp_path / "merged")
    return weights(load_transformer(tmp_path / "merged"))


def converted(path, editor, tmp_path, tool):
    tool("convert_lora").convert(path, tmp_path / "converted" / "comfyui.safetensors")
    return fused(tmp_path / "converted", editor, tmp_path, tool)


@pytest.fixture
def apply(tool, tmp_path):
    """apply(way, path): how every layer of the tiny editor is changed by an adapter."""

    def by(way, path):
        editor = tiny_editor()
        before = weights(editor.transformer)
        return changes(before, way(path, editor, tmp_path, tool))

    return by


def assert_scales(change, by_diffusers, scale):
    """Every layer changed by scale · B·A, and no other layer; `scale` a number or one by layer."""
    assert change.keys() == by_diffusers.keys()
    for layer, (a, b) in by_diffusers.items():
        expected = scale.get(layer, scale[None]) if isinstance(scale, dict) else scale
        torch.testing.assert_close(change[layer], expected * b @ a, atol=2e-6, rtol=1e-4, msg=lambda m, n=layer: n + m)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_applied_at_its_scale(layout, apply, matrices, by_diffusers, tmp_path):
    scale = write(tmp_path / "lora.safetensors", layout, matrices, by_diffusers)
    assert_scales(apply(fused, tmp_path / "lora.safetensors"), by_diffusers, scale)


@pytest.mark.parametrize("way", [loaded, merged, converted])
@pytest.mark.parametrize("layout", ["musubi", "comfyui-alpha", "diffusers-rslora", "onetrainer-flat"])
def test_every_way_of_applying_gives_the_same(layout, way, apply, matrices, by_diffusers, tmp_path):
    scale = write(tmp_path / "lora.safetensors", layout, matrices, by_diffusers)
    assert_scales(apply(way, tmp_path / "lora.safetensors"), by_diffusers, scale)


@pytest.mark.parametrize("way", [fused, loaded, merged, converted])
def test_peft_folders_have_their_settings(way, apply, by_diffusers, tmp_path):
    folder = peft_folder(
        tmp_path / "peft",
        by_diffusers,
        # Flags stand at the start of a pattern, which PEFT looks for at the end of a name.
        alpha_pattern={"(?i)ATTN.to_Q": 8, "^single_transformer_blocks.0.proj_out": 1},
        rank_pattern={"to_k": RANK},
        r=RANK,
    )
    scales = {None: 1.5, "single_transformer_blocks.0.proj_out": 0.25}
    scales |= {layer: 2.0 for layer in by_diffusers if layer.endswith("attn.to_q")}
    assert_scales(apply(way, folder), by_diffusers, scales)


def test_a_peft_file_takes_the_settings_beside_it(apply, by_diffusers, tmp_path):
    folder = peft_folder(tmp_path / "peft", by_diffusers, file="renamed.safetensors", use_rslora=True)
    assert_scales(apply(fused, folder / "renamed.safetensors"), by_diffusers, 3.0)
    with pytest.raises(ValueError, match=r"PEFT's names .*: give the folder"):
        read_adapter(load_file(folder / "renamed.safetensors"))
    (folder / "adapter_config.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"PEFT's names .* adapter_config\.json that is not there"):
        apply(fused, folder / "renamed.safetensors")
    # The advice, followed.
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    assert_scales(apply(fused, folder / "renamed.safetensors"), by_diffusers, 1.0)


def test_settings_beside_are_those_of_the_only_file_in_the_folder(apply, matrices, by_diffusers, tmp_path):
    """diffusion-pipe's files have ComfyUI's names, and PEFT's settings beside them."""
    write(tmp_path / "renamed.safetensors", "comfyui", matrices, by_diffusers)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    (tmp_path / "._renamed.safetensors").write_bytes(b"a Mac's companion of the file")
    for source in (tmp_path, tmp_path / "renamed.safetensors"):
        assert_scales(apply(fused, source), by_diffusers, 2.0)
    shutil.copy(tmp_path / "renamed.safetensors", tmp_path / "adapter_model.safetensors")
    assert_scales(apply(fused, tmp_path), by_diffusers, 2.0)
    assert_scales(apply(fused, tmp_path / "renamed.safetensors"), by_diffusers, 1.0)


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ('{"step": 1, "lora_params": {"lora_rank": 4, "lora_alpha": 12, "target_modules": ["to_q"]}}', 3.0),
        ('{"step": 1, "lora_params": {"transformer": {"lora_rank": 4, "lora_alpha": 12}}}', 3.0),
        ('{"of": "another program"}', 1.0),
    ],
)
def test_fastvideos_settings(text, scale, apply, matrices, by_diffusers, tmp_path):
    write(tmp_path / LORA_FILE, "diffusers", matrices, by_diffusers)
    (tmp_path / "lora_config.json").write_text(text)
    (tmp_path / "lora_optimizer.pt").write_bytes(b"")
    for way in (fused, loaded):
        assert_scales(apply(way, tmp_path), by_diffusers, scale)


@pytest.mark.parametrize(("layout", "said"), [("diffusers", True), ("diffusers-header", False), ("musubi", False)])
def test_an_alpha_that_is_not_used_is_said(layout, said, matrices, by_diffusers, tmp_path, caplog):
    write(tmp_path / "a.safetensors", layout, matrices, by_diffusers)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as stored:
        header = stored.metadata() | {"alpha": "8"}
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "a.safetensors", header)
    with caplog.at_level(logging.WARNING):
        read_adapter(tmp_path / "a.safetensors")
    assert ("a.safetensors' is applied at scale 1" in caplog.text and "alpha = 8" in caplog.text) == said


@pytest.mark.parametrize("way", [fused, loaded])
def test_layers_of_several_ranks_have_their_own_scales(way, apply, by_diffusers, tmp_path):
    """Zero columns do not change the product, but the rank that alpha is divided by."""
    wide = dict(by_diffusers)
    a, b = wide["proj_out"]
    wide["proj_out"] = torch.cat([a, a]), torch.cat([b, torch.zeros_like(b)], 1)
    state = named(wide, dotted("transformer."))
    header = HEADER | {"transformer.rank_pattern": {"^proj_out": 8}, "transformer.alpha_pattern": {"^proj_out": 24}}
    save_file(state, tmp_path / LORA_FILE, {"lora_adapter_metadata": json.dumps(header)})
    # Not that of the blocks' proj_out, whose names end alike.
    assert_scales(apply(way, tmp_path), by_diffusers, {None: 0.5, "proj_out": 3.0})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64"])
@pytest.mark.parametrize("way", [fused, loaded, converted])
def test_tensors_of_every_precision(dtype, way, apply, by_diffusers, matrices, tmp_path):
    dtype = getattr(torch, dtype)
    write(tmp_path / "lora.safetensors", "musubi", matrices, by_diffusers, dtype)
    stored = {name: (a.to(dtype).float(), b.to(dtype).float()) for name, (a, b) in by_diffusers.items()}
    assert_scales(apply(way, tmp_path / "lora.safetensors"), stored, 0.5)


def test_torch_files_and_given_tensors(apply, by_diffusers, matrices, tmp_path):
    state = named(matrices, flat("lora_unet_"), KOHYA, ALPHA)
    torch.save({"state_dict": state}, tmp_path / "lora.pt")
    assert_scales(apply(fused, tmp_path / "lora.pt"), by_diffusers, 0.5)
    assert_scales(apply(loaded, state), by_diffusers, 0.5)
    for beside, name in (
        ({"network_alpha": 8}, "network_alpha"),
        ({"config": {"lora_alpha": 8, "r": 4}}, "lora_alpha"),
    ):
        torch.save({"state_dict": state} | beside, tmp_path / "lora.pt")
        with pytest.raises(ValueError, match=f"keeps '{name}' beside its tensors"):
            read_adapter(tmp_path / "lora.pt")


def test_safetensors_with_the_suffix_of_a_torch_file(apply, by_diffusers, tmp_path):
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "lora.pt")
    assert_scales(apply(fused, tmp_path / "lora.pt"), by_diffusers, 1.0)


def test_only_the_layers_of_a_file_change(apply, by_diffusers, tmp_path):
    some = {layer: by_diffusers[layer] for layer in (TO_Q, "single_transformer_blocks.0.proj_out")}
    save_file(named(some, dotted("transformer.")), tmp_path / "some.safetensors")
    for way in (fused, loaded):
        assert_scales(apply(way, tmp_path / "some.safetensors"), some, 1.0)


@pytest.mark.parametrize("way", [fused, loaded])
def test_convolutions_and_the_last_modulation(way, apply, tmp_path):
    """Linear layers stored as convolutions, the patch embedding, and the modulation whose halves are exchanged."""
    torch.manual_seed(0)
    conv = torch.randn(2, 16, 1, 2, 2), torch.randn(D, 2, 1, 1, 1)
    last = torch.randn(2, D), torch.randn(2 * D, 2)
    proj = torch.randn(2, D, 1, 1), torch.randn(D, 2, 1, 1)
    layers = {"img_in.proj": conv, "final_layer.adaLN_modulation.1": last, "double_blocks.0.img_attn_proj": proj}
    save_file(named(layers, flat("lora_unet_"), KOHYA, 4.0), tmp_path / "lora.safetensors")
    change = apply(way, tmp_path / "lora.safetensors")
    b = torch.cat(last[1].chunk(2)[::-1])
    assert change.keys() == {"x_embedder.proj", "norm_out.linear", "transformer_blocks.0.attn.to_out.0"}
    for got, expected in (
        (change["x_embedder.proj"], 2 * torch.einsum("or,rithw->oithw", conv[1].flatten(1), conv[0])),
        (change["norm_out.linear"], 2 * b @ last[0]),
        (change["transformer_blocks.0.attn.to_out.0"], 2 * proj[1].flatten(1) @ proj[0].flatten(1)),
    ):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    again = to_comfyui(tmp_path / "lora.safetensors")
    assert torch.equal(again["diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight"], 2 * last[1])
    assert again["diffusion_model.img_in.proj.lora_B.weight"].shape == conv[1].shape


def test_adapters_stay_switchable(matrices, by_diffusers, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    write(tmp_path / "a.safetensors", "musubi", matrices, by_diffusers)
    write(tmp_path / "b.safetensors", "diffusers", matrices, by_diffusers)
    editor = tiny_editor()
    editor.load_lora_weights(tmp_path, adapter_name="halved", weight_name="a.safetensors")
    editor.load_lora_weights(tmp_path / "b.safetensors", adapter_name="whole")
    layer, before = editor.transformer.get_submodule(TO_Q), tiny_editor().transformer.get_submodule(TO_Q)
    x = torch.ones(1, D)
    a, b = by_diffusers[TO_Q]
    for adapters, factors, scale in ((["halved"], [1], 0.5), (["whole"], [1], 1), (["halved", "whole"], [2, -1], 0)):
        editor.set_adapters(adapters, factors)
        torch.testing.assert_close(layer(x) - before(x), scale * x @ a.T @ b.T, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="cannot have the name 'half'"):
        editor.load_lora_weights(tmp_path / "b.safetensors", adapter_name="half")


def test_hotswapped_adapters(matrices, by_diffusers, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    editor = tiny_editor()
    for layout, scale in (("musubi", 0.5), ("diffusers", 1.0)):
        write(tmp_path / "a.safetensors", layout, matrices, by_diffusers)
        editor.load_lora_weights(tmp_path / "a.safetensors", adapter_name="one", hotswap=scale == 1.0)
        before = weights(tiny_editor().transformer)
        editor.transformer.fuse_lora()
        after = {name.replace(".base_layer", ""): value for name, value in weights(editor.transformer).items()}
        assert_scales(changes(before, after), by_diffusers, scale)
        editor.transformer.unfuse_lora()


def test_a_text_encoders_part_is_left_out_with_a_word(apply, by_diffusers, tmp_path, caplog):
    state = named(by_diffusers, dotted("transformer."))
    names = (
        "text_encoder.x.lora_A.weight",
        "lora_te1_x.lora_up.weight",
        "lora_llama_x.alpha",
        "bundle_emb.word.clip_l",
    )
    te = {name: torch.ones(4, 8) for name in names}
    save_file(state | te, tmp_path / "lora.safetensors")
    for way in (fused, loaded):
        with caplog.at_level(logging.WARNING):
            assert_scales(apply(way, tmp_path / "lora.safetensors"), by_diffusers, 1.0)
        assert "also adapts a text encoder" in caplog.text
        caplog.clear()
    save_file(te, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"no LoRA weights of a transformer: .* is of a text encoder"):
        read_adapter(tmp_path / "lora.safetensors")


def test_every_layer_of_a_transformer_has_one_name_in_every_layout():
    linear = [name for name, m in tiny_editor().transformer.named_modules() if getattr(m, "in_features", 0)]
    for name in linear:
        for key in (name, f"transformer.{name}", flat("lora_transformer_")(name), flat("lora_")(name)):
            assert known_layer(key) == name
    for original in (pattern.replace("#", "0") for pattern in layer_patterns("original")):
        assert known_layer(original) == known_layer(flat("lora_unet_")(original)) == original
    # The guidance embedding is not in the tiny model.
    assert set(linear) <= {pattern.replace("#", "0") for pattern in layer_patterns("diffusers")}


NAN, INF = float("nan"), float("inf")
DOWN = f"transformer.{TO_Q}.lora_A.weight"
UP = f"transformer.{TO_Q}.lora_B.weight"


def without(key):
    return lambda state: state.pop(key)


def huge(state):
    return {key: torch.full_like(state[key], 1e30) for key in (DOWN, UP)}


def replaced(key, value):
    return lambda state: state.update({key: value(state[key]) if callable(value) else value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced(DOWN, lambda a: a * NAN), f"{DOWN}' .* has NaN or infinite values"),
        (lambda s: s.update(huge(s)), f"more than numbers can hold .'{DOWN}'"),
        (replaced(UP, lambda b: b.index_fill(1, torch.tensor(0), INF)), f"{UP}' .* has NaN or infinite values"),
        (without(UP), f"{DOWN}' without its lora_B"),
        (without(DOWN), f"{UP}' without its lora_A"),
        (replaced(DOWN, lambda a: a[:2].clone()), r"\(2, 16\) .* no rank in common"),
        (replaced(DOWN, lambda a: a[:, :8].clone()), r"another model: .*\(4, 8\), the layer here has 16 inputs"),
        (replaced(UP, lambda b: b[:8].clone()), r"another model: .*\(8, 4\), the layer here has 16 outputs"),
        (replaced(DOWN, lambda a: a[0].clone()), r"is \(16,\), where a matrix belongs"),
        (replaced(DOWN, torch.zeros(0, 16, 1, 1)), "no rank in common"),
        (replaced(DOWN, torch.zeros(4, 0, 1, 1)), r"another model: .*\(4, 0.*\), the layer here has 16 inputs"),
        (replaced(DOWN, lambda a: a.to(torch.int8)), "is stored as int8, where floating point"),
        (replaced(f"transformer.{TO_Q}.alpha", torch.tensor(NAN)), "alpha' .* no finite number"),
        (replaced(f"transformer.{TO_Q}.alpha", torch.tensor(0.0)), "alpha' .* no finite number other than 0"),
        (replaced("transformer.proj.alpha", torch.tensor(1.0)), "transformer.proj.alpha' without its matrices"),
        (replaced(f"transformer.{TO_Q}.dora_scale", torch.ones(16)), f"is DoRA .*{TO_Q}.dora_scale"),
        (replaced(f"transformer.{TO_Q}.lora_magnitude_vector", torch.ones(16)), "is DoRA"),
        (replaced(f"transformer.{TO_Q}.hada_w1_a", torch.ones(16, 2)), "is LoHa"),
        (replaced(f"transformer.{TO_Q}.lokr_w1", torch.ones(2, 2)), "is LoKr"),
        (replaced(f"transformer.{TO_Q}.lora_B.bias", torch.ones(16)), "is a LoRA with a bias"),
        (replaced(f"transformer.{TO_Q}.diff_b", torch.ones(16)), "stores a weight's whole change"),
        (replaced("transformer.proj_out.weight", torch.ones(2, 2)), "'transformer.proj_out.weight', which is no part"),
        (replaced(f"transformer.{TO_Q}.reshape_weight", torch.ones(2)), "reshape_weight', which is no part"),
        (replaced(f"diffusion_model.{TO_Q}.lora_A.weight", torch.ones(4, 16)), "without its lora_B"),
        (replaced(f"transformer.{TO_Q}.lora_down.weight", torch.ones(4, 16)), "two adapters of one layer"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_adapters_are_refused_by_file_and_key(damage, message, apply, by_diffusers, tmp_path):
    state = named(by_diffusers, dotted("transformer."))
    damage(state)
    save_file(state, tmp_path / "bad.safetensors")
    for way in (fused, loaded):
        with pytest.raises(ValueError, match=message) as caught:
            apply(way, tmp_path / "bad.safetensors")
        assert "bad.safetensors'" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        check_fits(read_adapter(state), tiny_editor().transformer, state)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("diffusion_model.blocks.0.self_attn.q", "there is no layer 'blocks.0.self_attn.q'"),  # Wan
        ("lora_unet_double_blocks_0_img_mlp_0", "there is no layer"),  # Flux
        ("transformer.transformer_blocks.7.attn.to_q", "there is no layer 'transformer_blocks.7.attn.to_q' here"),
        ("transformer.transformer_blocks.0.attn.norm_q", "there is no layer"),
        ("diffusion_model.double_blocks.0.img_attn_qkv", "has 16 rows, which does not fit layers of 16 inputs"),
        ("diffusion_model.single_blocks.0.linear1", "has 16 rows, which does not fit layers of 16 inputs"),
    ],
)
def test_layers_of_other_models(keys, message, tmp_path):
    save_file(named({keys: (torch.ones(2, 16), torch.ones(16, 2))}, dotted("")), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"other.safetensors' belongs to another model: .*{message}") as caught:
        fuse_adapter(tiny_editor().transformer, tmp_path / "other.safetensors")
    assert keys in str(caught.value)


def test_an_odd_number_of_rows_has_no_halves(tmp_path):
    last = {"final_layer.adaLN_modulation.1": (torch.ones(2, 16), torch.ones(31, 2))}
    save_file(named(last, dotted("diffusion_model.")), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd.safetensors' belongs to another model: .*lora_B.weight' has 31 rows"):
        read_adapter(tmp_path / "odd.safetensors")


def test_one_layer_under_two_names(matrices, by_diffusers, tmp_path):
    both = named(matrices, dotted("diffusion_model.")) | named(by_diffusers, dotted("transformer."))
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match=r"both.safetensors' has the layer .* twice"):
        read_adapter(tmp_path / "both.safetensors")


def test_a_header_that_names_another_model(matrices, tmp_path):
    state = named(matrices, flat("lora_unet_"), KOHYA)
    save_file(state, tmp_path / "flux.safetensors", {"modelspec.architecture": "Flux.1-dev/lora"})
    with pytest.raises(ValueError, match=r"flux.safetensors' belongs to another model: its header says 'flux'"):
        read_adapter(tmp_path / "flux.safetensors")
    save_file(state, tmp_path / "flux.safetensors", {"ss_base_model_version": "flux1"})
    with pytest.raises(ValueError, match=r"flux.safetensors' belongs to another model: its header says 'flux'"):
        read_adapter(tmp_path / "flux.safetensors")


def test_settings_that_name_another_model(apply, by_diffusers, tmp_path):
    for base in (None, "hunyuanvideo-community/HunyuanVideo", "/flux/weights", "/hunyuan/flux"):
        folder = peft_folder(tmp_path / "peft", by_diffusers, base_model_name_or_path=base)
        assert_scales(apply(fused, folder), by_diffusers, 1.5)
    folder = peft_folder(tmp_path / "peft", by_diffusers, base_model_name_or_path="black-forest-labs/FLUX.1-dev")
    with pytest.raises(ValueError, match=r"another model: .*adapter_config.json' says .* on 'black-forest-labs/FLUX"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "describes DoRA"),
        ({"peft_type": "LOHA"}, "describes a LOHA adapter"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["x"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "training started with pissa_niter_4, which changed the model's own"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha .* is '16', where a finite number"),
        ({"lora_alpha": 0}, "a finite number other than 0"),
        ({"lora_alpha": 10**400}, "a finite number other than 0"),
        ({"r": 8}, r"lora_A.weight' has rank 4 where .* says 8"),
        ({"rank_pattern": {"to_q": 2}}, r"to_q.lora_A.weight' has rank 4 where .* says 2"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"alpha_pattern": {"to_q|(?i)TO_K": 2}}, "no regular expression"),
        ({"alpha_pattern": {"to_q{99999999999}": 2}}, "no regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern in .* is no mapping"),
        ({"alpha_pattern": {"to_q": None}}, "alpha_pattern of 'to_q'"),
    ],
)
def test_settings_that_are_not_those_of_a_plain_lora(settings, message, by_diffusers, tmp_path):
    folder = peft_folder(tmp_path / "peft", by_diffusers, **settings)
    with pytest.raises(ValueError, match=message) as caught:
        read_adapter(folder)
    assert "adapter_config.json" in str(caught.value)
    header = {f"transformer.{name}": value for name, value in ({"r": 4, "lora_alpha": 4} | settings).items()}
    state = named(by_diffusers, dotted("transformer."))
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(ValueError, match=message) as caught:
        read_adapter(tmp_path / "lora.safetensors")
    assert "header of '" in str(caught.value)


def test_settings_that_are_not_whole(by_diffusers, tmp_path):
    folder = peft_folder(tmp_path / "peft", by_diffusers)
    for text, message in (
        ('{"r": 4', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "are a list, where names"),
    ):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=f"adapter_config.json.*{message}"):
            read_adapter(folder)
    state = named(by_diffusers, dotted("transformer."))
    for text in ("{", "[" * 100_000):
        save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": text})
        with pytest.raises(ValueError, match=r"in the header of .* are not valid JSON"):
            read_adapter(tmp_path / "lora.safetensors")


def test_settings_as_an_editor_of_windows_saves_them(apply, by_diffusers, tmp_path):
    folder = peft_folder(tmp_path / "peft", by_diffusers)
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}', encoding="utf-8-sig")
    assert_scales(apply(fused, folder), by_diffusers, 0.5)


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_no_whole_adapter(by_diffusers, tmp_path, capsys):
    state = named(by_diffusers, dotted("transformer."))
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        whole = (tmp_path / name).read_bytes()
        for share, message in ((0, "is empty"), (0.5, "is not a whole"), (0.001, "is not a whole")):
            (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=f"{name}' {message}.*copy or download it again"):
                read_adapter(tmp_path / name)
    torch.save(state | {"run": Payload()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt' holds Python objects besides tensors"):
        read_adapter(tmp_path / "a.pt")
    assert "this must not run" not in capsys.readouterr().out
    for value, message in (
        (state[UP].to_sparse(), "a sparse tensor"),
        (state[UP].to("meta"), "a meta tensor"),
        ("text", "stored as str"),
    ):
        torch.save(state | {UP: value}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=f"{UP}' of the adapter .*a.pt' is {message}"):
            read_adapter(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt' holds a list"):
        read_adapter(tmp_path / "a.pt")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none.safetensors' holds no LoRA weights of a transformer: it is empty"):
        read_adapter(tmp_path / "none.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds no LoRA weights .* is no LoRA weight in a known layout"):
        read_adapter(tmp_path / "model")


def test_the_file_of_a_folder(by_diffusers, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        read_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        tiny_editor().load_lora_weights(tmp_path / "absent")
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "one.safetensors")
    assert read_adapter(tmp_path).keys() == by_diffusers.keys()
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 files that may be an adapter: name one, as '.*one.safetensors'"):
        read_adapter(tmp_path)
    shutil.copy(tmp_path / "one.safetensors", tmp_path / LORA_FILE)
    assert read_adapter(tmp_path).keys() == by_diffusers.keys()


def test_a_run_is_its_last_checkpoints_adapter(by_diffusers, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last"
    last.mkdir(parents=True)
    save_file(named(by_diffusers, dotted("transformer.")), last / LORA_FILE)
    assert read_adapter(tmp_path / "run").keys() == by_diffusers.keys()


@pytest.mark.parametrize("name", ["someone/no-such-adapter", "folder/absent.safetensors", "/nowhere/a/b"])
def test_adapters_that_are_nowhere(name, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    with pytest.raises(FileNotFoundError, match=f"There is no adapter at {name}"):
        tiny_editor().load_lora_weights(name, local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(TypeError, match="no argument 'wieght_name'"):
        tiny_editor().load_lora_weights(name, wieght_name="x")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (errors.LocalEntryNotFoundError, {}, "the Hub cannot be reached or was not asked, and its cache does not hold"),
        (errors.EntryNotFoundError, {}, "its repository on the Hub has no adapter of a usual name: give weight_name"),
        (errors.EntryNotFoundError, {"weight_name": "a.bin"}, "its repository on the Hub has no file a.bin"),
        (errors.RevisionNotFoundError, {}, "its repository on the Hub has no such revision"),
        (errors.GatedRepoError, {}, "the Hub has no such repository, or one that needs your consent and token"),
        (
            errors.RepositoryNotFoundError,
            {},
            "the Hub has no such repository, or one that needs your consent and token",
        ),
        (errors.HfHubHTTPError, {}, "the Hub fails"),
    ],
)
def test_the_reason_why_a_repository_gives_no_adapter(kind, arguments, message, monkeypatch):
    def download(*_, **__):
        error = kind.__new__(kind)  # some of them want a response
        raise error

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=rf"^There is no adapter at a/b: .* here, and {message}.*\.$"):
        local_adapter("a/b", **arguments)


@pytest.mark.parametrize("configured", [True, False])
def test_a_repositorys_settings_are_downloaded_with_its_weights(configured, apply, by_diffusers, tmp_path, monkeypatch):
    folder = peft_folder(tmp_path / "cache", by_diffusers)
    if not configured:
        (folder / "adapter_config.json").unlink()

    def download(repository, filename, **_):
        if not (folder / filename).exists():
            raise errors.EntryNotFoundError
        return str(folder / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    file = local_adapter("a/b")
    assert file == folder / "adapter_model.safetensors"
    if configured:
        assert_scales(apply(fused, file), by_diffusers, 1.5)
    else:
        with pytest.raises(ValueError, match="PEFT's names"):
            read_adapter(file)


def test_fastvideos_settings_are_downloaded_too(apply, matrices, by_diffusers, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    (tmp_path / "cache").mkdir()
    write(tmp_path / "hub" / LORA_FILE, "diffusers", matrices, by_diffusers)
    (tmp_path / "hub" / "lora_config.json").write_text('{"lora_params": {"lora_rank": 4, "lora_alpha": 2}}')

    def download(repository, filename, **_):
        return shutil.copy(tmp_path / "hub" / filename, tmp_path / "cache" / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    assert_scales(apply(fused, local_adapter("a/b")), by_diffusers, 0.5)

    def cached(repository, filename, **_):
        if filename != LORA_FILE:
            raise errors.LocalEntryNotFoundError("offline")
        return str(tmp_path / "cache" / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", cached)
    assert local_adapter("a/b") == tmp_path / "cache" / LORA_FILE


def test_nothing_changes_where_an_adapter_is_refused(by_diffusers, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    state = named(by_diffusers, dotted("transformer."))
    state["transformer.proj_out.lora_B.weight"] *= NAN
    save_file(state, tmp_path / "bad.safetensors")
    editor = tiny_editor()
    before = weights(editor.transformer)
    with pytest.raises(ValueError, match="proj_out"):
        fuse_adapter(editor.transformer, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="proj_out"):
        editor.load_lora_weights(tmp_path / "bad.safetensors")
    assert not changes(before, weights(editor.transformer))
    assert not getattr(editor.transformer, "peft_config", {})


def test_changes_that_the_weights_cannot_hold(by_diffusers, tmp_path):
    large = {TO_Q: (torch.full((1, D), 1e3), torch.full((D, 1), 1e3))}
    save_file(named(large, dotted("transformer.")), tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match=f"'{TO_Q}' by the adapter .* too large for weights in float16"):
        fuse_adapter(tiny_editor().transformer.half(), tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match="a finite number, not nan"):
        fuse_adapter(tiny_editor().transformer, tmp_path / "large.safetensors", NAN)


def test_merging_reads_the_adapter_once(tool, by_diffusers, tmp_path, monkeypatch):
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "lora.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    opened = []
    safe_open = adapter_files.safe_open
    monkeypatch.setattr(adapter_files, "safe_open", lambda file, **kw: opened.append(file) or safe_open(file, **kw))
    tool("merge_lora").merge(tmp_path / "model", tmp_path / "lora.safetensors", tmp_path / "merged")
    assert opened == [tmp_path / "lora.safetensors"]


@pytest.mark.parametrize("name", ["merge_lora", "convert_lora"])
def test_commands_end_with_one_sentence_and_write_nothing(name, tool, by_diffusers, tmp_path, monkeypatch, capsys):
    state = named(by_diffusers, dotted("transformer."))
    state[DOWN] *= NAN
    save_file(state, tmp_path / "bad.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    lora, output = str(tmp_path / "bad.safetensors"), tmp_path / "out"
    options = {"merge_lora": ["--model", str(tmp_path / "model"), "--lora", lora], "convert_lora": ["--input", lora]}
    monkeypatch.setattr("sys.argv", [name, *options[name], "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        tool(name).main()
    assert ended.value.code == 2
    assert "has NaN or infinite values" in capsys.readouterr().err
    assert not output.exists()


def test_comfyui_files_survive_a_round_trip(matrices, by_diffusers, tmp_path):
    """One A for a whole stack stays one, and types stay where scales do not round."""
    scale = write(tmp_path / "lora.safetensors", "comfyui-alpha", matrices, by_diffusers, torch.bfloat16)
    out = to_comfyui(tmp_path / "lora.safetensors")
    given = load_file(tmp_path / "lora.safetensors")
    assert out.keys() == {key for key in given if not key.endswith(".alpha")}
    for key, value in out.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, given[key] * (scale if "lora_B" in key else 1))
