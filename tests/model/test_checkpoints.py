import json
import re

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file

from icve.model import HunyuanVideoInContextTransformer3DModel, export_transformer, load_transformer
from icve.model.key_names import to_diffusers, to_original

from .conftest import batch, randomised


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_diffusers_text_to_video_folder_loads_unchanged(config, tmp_path):
    peer = randomised(HunyuanVideoTransformer3DModel(**config))
    peer.save_pretrained(tmp_path)
    assert same(load_transformer(tmp_path).state_dict(), peer.state_dict())


def test_sharded_folders_load_and_a_missing_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert same(load_transformer(tmp_path).state_dict(), model.state_dict())
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        load_transformer(tmp_path)


@pytest.mark.parametrize("format", ["diffusers", "icve"])
def test_export_and_load_are_exact(model, tmp_path, format):
    export_transformer(model, tmp_path / "out", format)
    loaded = load_transformer(tmp_path / "out")
    assert same(loaded.state_dict(), model.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(**batch()), model(**batch()))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_never_overwrites(model, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        export_transformer(model, tmp_path)
    with pytest.raises(ValueError, match="onnx"):
        export_transformer(model, tmp_path / "new", "onnx")
    assert not (tmp_path / "new").exists()


def test_sizes_of_a_single_file_are_read_from_its_shapes(config, tmp_path):
    config |= {"num_attention_heads": 1, "attention_head_dim": 128, "rope_axes_dim": (16, 56, 56)}
    model = randomised(HunyuanVideoInContextTransformer3DModel(**config | {"guidance_embeds": True}))
    for name, state in (("a", model.state_dict()), ("b", to_original(model.state_dict()))):
        folder = tmp_path / name
        folder.mkdir()
        save_file(state, folder / "weights.safetensors")
        loaded = load_transformer(folder / "weights.safetensors")
        assert same(loaded.state_dict(), model.state_dict())
        assert loaded.config.guidance_embeds


def test_a_checkpoint_folder_is_read_through_its_transformer(model, tmp_path):
    model.save_pretrained(tmp_path / "transformer")
    assert same(load_transformer(tmp_path).state_dict(), model.state_dict())


def test_names_of_the_13b_model(shared_data):
    """The original key list of methods §1.7, built on the meta device, maps one to one onto diffusers' names."""
    with torch.device("meta"):
        model = HunyuanVideoInContextTransformer3DModel()
    original = to_original(model.state_dict())
    assert original["double_blocks.19.img_attn_qkv.weight"].shape == (9216, 3072)
    assert original["single_blocks.39.linear1.weight"].shape == (21504, 3072)
    assert original["final_layer.adaLN_modulation.1.bias"].shape == (6144,)
    back = to_diffusers(original, 3072)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in model.state_dict().items()}
    golden = load_file(shared_data / "golden" / "golden_a.safetensors")
    names = {re.sub(r"\.\d+\.", ".#.", key.removeprefix("state_dict.")) for key in golden if "state_dict" in key}
    assert {re.sub(r"\.\d+\.", ".#.", key) for key in original} == names


def test_bad_checkpoints_are_named(model, config, tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_transformer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors"):
        load_transformer(tmp_path)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"missing 'single_transformer_blocks\.2\."):
        load_transformer(tmp_path / "m", num_single_layers=3)
    with pytest.raises(ValueError, match=r"'x_embedder.proj.weight' is \(32, 16, 1, 2, 2\) where the model has"):
        load_transformer(tmp_path / "m", patch_size=1)
    weights = next((tmp_path / "m").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_transformer(tmp_path / "m")
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "other" / "a.safetensors")
    (tmp_path / "other" / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no HunyuanVideo transformer"):
        load_transformer(tmp_path / "other")
