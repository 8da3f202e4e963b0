"""Every way of applying an adapter: fusing, loading it to switch, and converting it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from icve.cli.convert import main
from icve.models.adapters import files as adapter_files
from icve.models.lora import fuse_adapter, to_comfyui
from tests.models.adapters.adapter_cases import (
    NAN,
    TO_Q,
    D,
    assert_scales,
    changes,
    convert,
    converted,
    dotted,
    fused,
    loaded,
    merged,
    named,
    weights,
    write,
)
from tests.tiny import tiny_editor


@pytest.mark.parametrize("way", [loaded, merged, converted])
@pytest.mark.parametrize("layout", ["musubi", "comfyui-alpha", "diffusers-rslora", "onetrainer-flat"])
def test_every_way_of_applying_gives_the_same(layout, way, apply, matrices, by_diffusers, tmp_path):
    scale = write(tmp_path / "lora.safetensors", layout, matrices, by_diffusers)
    assert_scales(apply(way, tmp_path / "lora.safetensors"), by_diffusers, scale)


def test_only_the_layers_of_a_file_change(apply, by_diffusers, tmp_path):
    some = {layer: by_diffusers[layer] for layer in (TO_Q, "single_transformer_blocks.0.proj_out")}
    save_file(named(some, dotted("transformer.")), tmp_path / "some.safetensors")
    for way in (fused, loaded):
        assert_scales(apply(way, tmp_path / "some.safetensors"), some, 1.0)


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


def test_merging_reads_the_adapter_once(by_diffusers, tmp_path, monkeypatch):
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "lora.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    opened = []
    safe_open = adapter_files.safe_open
    monkeypatch.setattr(adapter_files, "safe_open", lambda file, **kw: opened.append(file) or safe_open(file, **kw))
    paths = ["--model", tmp_path / "model", "--lora", tmp_path / "lora.safetensors", "--output", tmp_path / "merged"]
    convert("merge", *paths)
    assert opened == [tmp_path / "lora.safetensors"]


@pytest.mark.parametrize("kind", ["merge", "lora"])
def test_commands_end_with_one_sentence_and_write_nothing(kind, by_diffusers, tmp_path, capsys):
    state = named(by_diffusers, dotted("transformer."))
    state[f"transformer.{TO_Q}.lora_A.weight"] *= NAN
    save_file(state, tmp_path / "bad.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    lora, output = str(tmp_path / "bad.safetensors"), tmp_path / "out"
    options = {"merge": ["--model", str(tmp_path / "model"), "--lora", lora], "lora": ["--input", lora]}
    assert main([kind, *options[kind], "--output", str(output)]) == 2
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
