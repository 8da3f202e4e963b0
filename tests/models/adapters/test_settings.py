"""The settings of an adapter, in its folder or its header: the scales they give, and what is refused."""

import json
import logging
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from icve.models.adapters.files import read_adapter
from icve.models.lora import LORA_FILE
from tests.models.adapters.adapter_cases import (
    HEADER,
    KOHYA,
    RANK,
    assert_scales,
    converted,
    dotted,
    flat,
    fused,
    loaded,
    merged,
    named,
    peft_folder,
    write,
)


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
        ("[]", "is no configuration: it holds list"),
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
