import json

import pytest
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaModel

from icve.models.loading import load_transformer
from icve.models.parts_fit import check_parts
from icve.models.wan.base import open_base


@pytest.fixture(scope="module")
def tool(tiny_weights_tool):
    return tiny_weights_tool


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    return tool.make_tiny_weights(tmp_path_factory.mktemp("tiny") / "weights")


def test_every_part_loads_with_its_library(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert {name for name in index if not name.startswith("_")} == {path.name for path in folder.iterdir()} - {
        "model_index.json"
    }
    transformer = HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer")
    llama = LlamaModel.from_pretrained(folder / "text_encoder")
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder_2")
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae")
    assert (vae.config.latent_channels, vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (16, 8, 4)
    assert llama.config.hidden_size == transformer.config.text_embed_dim
    assert clip.config.hidden_size == transformer.config.pooled_projection_dim
    for name, model in (("tokenizer", llama), ("tokenizer_2", clip)):
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        ids = tokenizer("make the red circle blue").input_ids
        assert max(ids) < model.config.vocab_size
        assert "red" in tokenizer.decode(ids)
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")(["red"], return_tensors="pt")
    assert clip(**tokens).pooler_output.shape == (1, 32)
    ours = load_transformer(folder / "transformer")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in transformer.parameters())


def test_it_is_small_and_not_overwritten(tool, folder, capsys):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3 * 2**20
    assert tool.main([str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert tool.main([str(folder.parent / "other"), "--family", "nobody"]) == 2
    assert "no tiny weights of 'nobody', but of hunyuan_video, wan, wan2.2" in capsys.readouterr().err


def test_the_seed_decides(tool, folder, tmp_path):
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert tool.main([str(tmp_path / "a")]) == 0
    assert tool.main([str(tmp_path / "b"), "--seed", "1"]) == 0
    assert (tmp_path / "a" / name).read_bytes() == (folder / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(("family", "channels", "spatial"), [("wan", 16, 8), ("wan2.2", 48, 16)])
def test_both_versions_of_wan_are_written(tool, tmp_path, family, channels, spatial):
    assert tool.main([str(tmp_path / "wan"), "--family", family]) == 0
    codec, text_encoder = open_base(tmp_path / "wan")
    transformer = load_transformer(tmp_path / "wan")
    check_parts(transformer, codec, text_encoder)
    assert (transformer.config.in_channels, codec.spatial_factor) == (channels, spatial)
