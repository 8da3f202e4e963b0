"""The names of an adapter's layers in every layout."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from icve.models.adapters.files import read_adapter
from icve.models.hunyuan_video.adapter_names import known_layer
from icve.models.hunyuan_video.key_names import layer_patterns
from icve.models.lora import fuse_adapter, to_comfyui
from tests.models.adapters.adapter_cases import (
    KOHYA,
    LAYOUTS,
    D,
    assert_scales,
    dotted,
    flat,
    fused,
    loaded,
    named,
    write,
)
from tests.tiny import tiny_editor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_applied_at_its_scale(layout, apply, matrices, by_diffusers, tmp_path):
    scale = write(tmp_path / "lora.safetensors", layout, matrices, by_diffusers)
    assert_scales(apply(fused, tmp_path / "lora.safetensors"), by_diffusers, scale)


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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("diffusion_model.blocks.0.self_attn.q", "there is no layer 'blocks.0.attn1.to_q'"),  # Wan
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
