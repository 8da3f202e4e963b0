"""LoRA: what is trained, how it is saved, loaded, merged and converted."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from icve.models.hunyuan_video.key_names import to_original
from icve.models.loading import load_transformer
from icve.models.lora import LORA_FILE, LoRA, add_lora, save_lora, to_comfyui
from tests.models.adapters.adapter_cases import convert
from tests.tiny import tiny_editor, tiny_wan_editor

pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")


def trained(rank: int = 3, alpha: float | None = None, make=tiny_editor):
    """A tiny editor with an adapter that changes every layer."""
    editor = make()
    add_lora(editor.transformer, LoRA(rank, alpha))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in editor.transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return editor


@pytest.fixture(params=["HunyuanVideo", "Wan"])
def make_editor(request, tiny_wan):
    return tiny_editor if request.param == "HunyuanVideo" else partial(tiny_wan_editor, tiny_wan[0])


def edit(editor) -> torch.Tensor:
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return editor(video, "make it red", generator=torch.Generator().manual_seed(0)).video


def test_only_the_adapter_learns_and_it_starts_as_no_change():
    plain = tiny_editor()
    editor = tiny_editor()
    count = add_lora(editor.transformer, LoRA(4))
    trainable = {name: p for name, p in editor.transformer.named_parameters() if p.requires_grad}
    assert count == sum(p.numel() for p in trainable.values())
    assert all("lora_" in name for name in trainable)
    layers = {re.sub(r"\.lora_[AB].*", "", name) for name in trainable}
    assert len(layers) == 8 + 4 + 5  # attention and MLPs of the double block, and the single block
    assert not any(re.search(r"norm|embed|refiner", name) for name in layers)
    assert "proj_out" not in layers
    assert torch.equal(edit(editor), edit(plain))


def test_a_saved_adapter_loads_into_a_pipeline_and_can_be_removed(tmp_path, make_editor):
    editor = trained(alpha=6.0, make=make_editor)
    file = save_lora(editor.transformer, tmp_path)
    assert file == tmp_path / LORA_FILE
    assert all(key.startswith("transformer.") for key in load_file(file))
    fresh = make_editor()
    plain = edit(fresh)
    fresh.load_lora_weights(tmp_path)
    assert (edit(fresh) - plain).abs().max() > 1e-3
    torch.testing.assert_close(edit(fresh), edit(editor), atol=1e-5, rtol=0)
    fresh.unload_lora_weights()
    assert torch.equal(edit(fresh), plain)


@pytest.mark.parametrize("layout", ["diffusers", "its own"])
def test_merged_weights_edit_like_the_adapter(layout, tmp_path, make_editor):
    editor = trained(alpha=6.0, make=make_editor)
    save_lora(editor.transformer, tmp_path / "lora")
    make_editor().save_pretrained(tmp_path / "model")
    own = "icve" if make_editor is tiny_editor else "wan"
    paths = ["--model", tmp_path / "model", "--lora", tmp_path / "lora", "--output", tmp_path / "merged"]
    convert("merge", *paths, "--format", "diffusers" if layout == "diffusers" else own)
    fresh = make_editor()
    fresh.transformer.load_state_dict(load_transformer(tmp_path / "merged").state_dict())
    torch.testing.assert_close(edit(fresh), edit(editor), atol=1e-4, rtol=0)


def test_comfyui_layout_is_the_same_change_of_the_original_weights(tmp_path):
    editor = trained(alpha=6.0)
    adapter = save_lora(editor.transformer, tmp_path).parent
    convert("lora", "--input", adapter, "--output", tmp_path / "comfy.safetensors")
    converted = load_file(tmp_path / "comfy.safetensors")
    names = {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in converted}
    assert names == {
        *(f"diffusion_model.double_blocks.0.{stream}_{layer}" for stream in ("img", "txt") for layer in
          ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2")),
        "diffusion_model.single_blocks.0.linear1",
        "diffusion_model.single_blocks.0.linear2",
    }  # fmt: skip
    state = load_file(tmp_path / LORA_FILE)
    change = {}
    for key in state:
        if key.endswith("lora_A.weight"):
            layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
            change[f"{layer}.weight"] = 6.0 / 3 * state[key.replace("lora_A", "lora_B")] @ state[key]
    for name, expected in to_original(change).items():
        layer = f"diffusion_model.{name.removesuffix('.weight')}"
        got = converted[f"{layer}.lora_B.weight"] @ converted[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    file = save_lora(trained().transformer, tmp_path)
    state = load_file(file)
    wrong = {key: value[:, :8].clone() if key.endswith("to_q.lora_A.weight") else value for key, value in state.items()}
    save_file(wrong, file)
    with pytest.raises(
        ValueError, match=r"another model: 'transformer\.\S+to_q\.lora_A\.weight' is \(3, 8\).*16 inputs"
    ):
        tiny_editor().load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="there is no layer"):
        tiny_editor().load_lora_weights({f"transformer.nowhere.{n}": v for n, v in state.items()})
    with pytest.raises(ValueError, match="no LoRA weights"):
        tiny_editor().load_lora_weights({"lora_something": torch.zeros(1)})
    with pytest.raises(ValueError, match="no LoRA weight in"):
        to_comfyui({"transformer.x.weight": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        convert("lora", "--input", tmp_path / "absent", "--output", tmp_path / "out.safetensors")


def test_part_of_a_stack_is_named():
    state = {f"transformer.transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}
    with pytest.raises(ValueError, match=r"img_attn_qkv stacks .* lacks transformer_blocks\.0\.attn\.to_k"):
        to_comfyui(state)


@pytest.mark.parametrize(("lora", "error"), [({"rank": 0}, ValueError), ({"dropout": 1.0}, ValueError)])
def test_values_out_of_range(lora, error):
    with pytest.raises(error, match="rank"):
        LoRA(**lora)


def test_targets_that_match_nothing():
    with pytest.raises(ValueError, match="No linear layer"):
        add_lora(tiny_editor().transformer, LoRA(targets="nothing"))
