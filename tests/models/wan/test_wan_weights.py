"""Wan's weights in every published layout, both ways, and what is said of those that do not fit."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from icve.models.counting import build_on_meta
from icve.models.families import family_of
from icve.models.loading import export_transformer, load_transformer
from icve.models.wan import adapter_names
from icve.models.wan.base import convert_codec, load_vae, open_base
from icve.models.wan.key_names import _TEXT, original_name, to_original, vae_to_diffusers
from icve.models.wan.tiny import TRANSFORMER, VAE, VAE_22, write_tiny, write_tiny_22
from icve.models.wan.transformer import WanInContextTransformer3DModel
from icve.models.wan.weights import mismatch

SIZES = {
    "Wan2.1-T2V-1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "Wan2.1-T2V-14B": {},
}


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def repository(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "repository"
    torch.manual_seed(0)
    (write_tiny if request.param == "2.1" else write_tiny_22)(folder)
    return folder


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_diffusers_folder_is_loaded_and_written_key_for_key(repository, tmp_path):
    model = load_transformer(repository)
    assert family_of(model).name == "wan"
    theirs = WanTransformer3DModel.from_pretrained(repository / "transformer")
    assert same(model.state_dict(), theirs.state_dict())
    export_transformer(model, tmp_path / "out")
    assert same(WanTransformer3DModel.from_pretrained(tmp_path / "out").state_dict(), theirs.state_dict())
    assert same(load_transformer(tmp_path / "out").state_dict(), theirs.state_dict())


def test_wans_own_layout_is_written_and_loaded(repository, tmp_path):
    model = load_transformer(repository)
    export_transformer(model, tmp_path / "own", "wan")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["_class_name"] == "WanModel"
    assert all("attn1" not in key for key in load_file(tmp_path / "own" / "diffusion_pytorch_model.safetensors"))
    again = load_transformer(tmp_path / "own")
    assert same(again.state_dict(), model.state_dict())
    assert again.config.num_attention_heads == TRANSFORMER["num_attention_heads"]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "module."])
def test_a_single_file_of_original_names_is_loaded(repository, tmp_path, prefix):
    """DiffSynth's and ComfyUI's layout: no config.json beside the weights."""
    model = load_transformer(repository)
    state = {f"{prefix}{key}": value for key, value in to_original(model.state_dict()).items()}
    save_file(state, tmp_path / "wan.safetensors")
    torch.save(state, tmp_path / "wan.pth")
    for name in ("wan.safetensors", "wan.pth"):
        again = load_transformer(tmp_path / name, num_attention_heads=2, attention_head_dim=16)
        assert same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_the_published_ones(shared_data, size):
    layouts = json.loads((shared_data / "golden_wan" / "key_layouts.json").read_text())[size]
    model = build_on_meta(WanInContextTransformer3DModel, SIZES[size])
    state = model.state_dict()
    assert sum(value.numel() for value in state.values()) == layouts["parameters"]
    assert len(state) == layouts["tensors"]
    for naming, found in (("diffusers", state), ("original", {original_name(k): v for k, v in state.items()})):
        root = {key: list(value.shape) for key, value in found.items() if not key.startswith("blocks.")}
        block = {
            key.removeprefix("blocks.7."): list(v.shape) for key, v in found.items() if key.startswith("blocks.7.")
        }
        expected = list(layouts[naming].values())
        assert [root, block] == expected


def test_why_weights_do_not_fit_is_said(repository):
    def meta(**settings):
        return build_on_meta(WanInContextTransformer3DModel, {"num_layers": 1} | settings).state_dict()

    small = {"num_attention_heads": 12, "ffn_dim": 8960}
    for expected, given, cause in (
        (small, {}, "the weights of the 14B, where the configuration is of the 1.3B"),
        (
            {"in_channels": 48, "out_channels": 48} | small,
            small,
            r"Wan 2.1's weights \(16 latent channels\), where the",
        ),
        (small, small | {"num_layers": 2}, "num_layers is 1 where the weights have 2"),
    ):
        with pytest.raises(AssertionError, match=cause):
            raise AssertionError(mismatch(meta(**expected), meta(**given)))
    whole = meta(**small)
    part = {key: value for key, value in whole.items() if "norm_k" not in key}
    assert "missing 'blocks.0.attn1.norm_k.weight' (2 in all); likely an incomplete download" in mismatch(whole, part)
    assert mismatch(whole, whole) is None


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        (
            {"in_channels": 48, "out_channels": 48},
            r"'patch_embedding.weight' is \(32, 16, 1, 2, 2\) .*; likely Wan 2.1's",
        ),
        (
            {"num_layers": 2},
            r"missing 'blocks\.1\.scale_shift_table' \(27 in all\); likely another depth: num_layers is 2",
        ),
        ({"num_attention_heads": 4}, r"'.*' is .* where the model has .*; likely the weights of width 32, where the"),
    ],
)
def test_loading_names_the_first_wrong_key_and_the_likely_cause(tmp_path, configured, message):
    WanTransformer3DModel(**TRANSFORMER | {"num_layers": 1}).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | configured))
    with pytest.raises(ValueError, match=message):
        load_transformer(tmp_path)


def test_an_image_to_video_model_is_named_as_one(tmp_path):
    settings = TRANSFORMER | {"in_channels": 36, "out_channels": 16, "num_layers": 1}
    WanTransformer3DModel(**settings).save_pretrained(tmp_path / "wide")
    WanTransformer3DModel(**settings, image_dim=16, added_kv_proj_dim=32).save_pretrained(tmp_path / "image")
    for name in ("wide", "image"):
        with pytest.raises(ValueError, match=r"likely an image-to-video \(I2V\) model's"):
            load_transformer(tmp_path / name)


def original_vae(state, version):
    """The tensors under Wan's own names."""
    known = {}
    sides = (("encoder", "down", 3), ("decoder", "up", 4))
    names = ["conv1.{}", "conv2.{}"]
    for side, way, count in sides:
        names += [f"{side}.conv1.{{}}", f"{side}.head.0.{{}}", f"{side}.head.2.{{}}"]
        middle = ["0.residual.{r}", "1.norm", "1.to_qkv", "1.proj", "2.residual.{r}"]
        levels = (
            [f"{n}" for n in range(16)]
            if version == "2.1"
            else [f"{a}.{way}samples.{b}" for a in range(4) for b in range(count)]
        )
        within = ["residual.{r}", "shortcut", "resample.1", "time_conv"]
        names += [f"{side}.middle.{part}.{{}}" for part in middle]
        names += [f"{side}.{way}samples.{level}.{part}.{{}}" for level in levels for part in within]
    for name in names:
        for number in (0, 2, 3, 6):
            for kind in ("weight", "bias", "gamma"):
                key = name.replace("{r}", str(number)).format(kind)
                [target] = vae_to_diffusers({key: torch.empty(0)})
                if target in state:
                    known[key] = state[target]
    return known


@pytest.mark.parametrize(("version", "settings"), [("2.1", VAE), ("2.2", VAE_22)])
def test_wans_own_folder_is_opened(version, settings, tmp_path, monkeypatch):
    """Wan2.x_VAE.pth and the UMT5's .pth are converted once, in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    write_tiny(tmp_path / "repository")
    vae = AutoencoderKLWan(**settings)
    text = UMT5EncoderModel.from_pretrained(tmp_path / "repository" / "text_encoder")
    folder = tmp_path / "own"
    folder.mkdir()
    state = original_vae(vae.state_dict(), version)
    assert len(state) == len(vae.state_dict())
    torch.save(state, folder / f"Wan{version}_VAE.pth")
    words = {}
    for key, value in text.state_dict().items():
        for ours, theirs in _TEXT.items():
            parts = key.split(".")
            if key == f"{theirs}.weight":
                words[f"{ours}.weight"] = value
            elif key.startswith("encoder.block.") and ".".join(parts[3:]) == f"{theirs}.weight":
                words[f"blocks.{parts[2]}.{ours}.weight"] = value
    torch.save(words, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(FileNotFoundError, match=r"lacks 'google/umt5-xxl/tokenizer\.json'"):
        open_base(folder)
    shutil.copytree(tmp_path / "repository" / "tokenizer", folder / "google" / "umt5-xxl")
    for _ in range(2):  # the second time from the cache
        codec, encoder = open_base(folder)
        codec.load()
        assert same(codec.vae.state_dict(), vae.state_dict())
        assert codec.vae.config.latents_mean[0] == pytest.approx(-0.7571 if version == "2.1" else -0.2289)
        torch.testing.assert_close(
            encoder.encode(["red"]).embeddings,
            open_base(tmp_path / "repository")[1].encode(["red"]).embeddings,
        )
    convert_codec(folder, tmp_path / "converted", None, None)
    assert same(AutoencoderKLWan.from_pretrained(tmp_path / "converted").state_dict(), vae.state_dict())


def test_missing_and_foreign_parts_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        open_base(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"must hold one file with the video autoencoder.*it holds none"):
        open_base(tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match="is not Wan's autoencoder"):
        load_vae(tmp_path)
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="is not a whole torch file"):
        load_vae(tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        "blocks.3.self_attn.q",
        "diffusion_model.blocks.3.self_attn.q",
        "transformer.blocks.3.attn1.to_q",
        "lora_unet_blocks_3_self_attn_q",
    ],
)
def test_layers_in_adapters_are_known_however_trainers_name_them(layer):
    known = adapter_names.known_layer(layer)
    rows = torch.zeros(4, 2)
    assert list(adapter_names.split(known, rows, 4)) == ["blocks.3.attn1.to_q"]
    assert adapter_names.stacked("blocks.3.attn1.to_q") == ("blocks.3.self_attn.q", ["blocks.3.attn1.to_q"])


def test_layers_of_other_models_are_not():
    for layer in ("double_blocks.0.img_attn_qkv", "blocks.x.self_attn.q", "lora_unet_input_blocks_1_0"):
        with pytest.raises(KeyError):
            adapter_names.known_layer(layer)
