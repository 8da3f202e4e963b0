"""Wan 2.2's references are made anew by diffusers' classes, and ours hold them."""

import importlib.util
import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from icve.models.wan.codec import WanCodec
from icve.models.wan.transformer import WanInContextTransformer3DModel

pytestmark = pytest.mark.slow
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("make_wan_goldens", repository / "tools" / "make_wan_goldens.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope="module")
def goldens(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("goldens") / "new"
    assert tool.main([str(folder)]) == 0
    return folder


def read(folder, name):
    tensors = {key: value.clone() for key, value in load_file(folder / f"{name}.safetensors").items()}
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    return tensors, state, json.loads((folder / f"{name}.json").read_text())["config"]


@torch.no_grad()
def test_the_transformer_is_diffusers_with_a_timestep_for_every_token(goldens):
    tensors, state, config = read(goldens, "golden_wan22_transformer")
    words = tensors["input.text_states"]
    model = WanInContextTransformer3DModel(**config, text_len=words.shape[1])
    model.load_state_dict(state)
    latents, source = tensors["input.noisy_latents"], tensors["input.source_latents"]
    rest = {
        "timestep": tensors["input.timestep"],
        "encoder_hidden_states": words,
        "encoder_attention_mask": torch.arange(words.shape[1]) < tensors["input.text_lengths"][:, None],
    }
    torch.testing.assert_close(model(latents, **rest), tensors["output_t2v"], **TOLERANCE)
    torch.testing.assert_close(model(latents, source, **rest), tensors["output_in_context"], **TOLERANCE)
    image = model(latents[:, :, 1:], None, latents[:, :, :1], **rest)
    torch.testing.assert_close(image, tensors["output_image"][:, :, 1:], **TOLERANCE)
    effects = [tensors["output_t2v"] - tensors[name] for name in ("output_in_context", "output_image")]
    assert all(effect.abs().max() > 0.01 for effect in effects)


def test_the_codec_is_diffusers_whole_and_in_tiles(tool, goldens, tmp_path):
    tensors, state, config = read(goldens, "golden_wan22_vae")
    vae = AutoencoderKLWan(**config)
    vae.load_state_dict(state)
    vae.save_pretrained(tmp_path)
    for ending, tiles in (("", {}), ("_tiled", {"tile_size": tool.TILE, "tile_stride": tool.STRIDE})):
        codec = WanCodec(str(tmp_path), **tiles)
        assert (codec.latent_channels, codec.temporal_factor, codec.spatial_factor) == (48, 4, 16)
        latents = tensors[f"output_latents{ending}"]
        torch.testing.assert_close(codec.encode(tensors["input.video"]), latents, **TOLERANCE)
        decoded = codec.decode(tensors["output_latents"])
        torch.testing.assert_close(decoded, tensors[f"output_decoded{ending}"], **TOLERANCE)
    difference = tensors["output_latents"] - tensors["output_latents_tiled"]
    assert difference.abs().max() > 1e-3  # what tiles do is seen
    assert tensors["output_decoded"].abs().lt(1).float().mean() > 0.5


def test_a_folder_with_something_in_it_is_left_alone(tool, goldens, capsys):
    assert tool.main([str(goldens)]) == 2
    assert capsys.readouterr().err.startswith("make_wan_goldens: ")
