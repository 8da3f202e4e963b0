import re

import pytest
import torch

from icve.models.hunyuan_video.configs import config_from, config_from_shapes, mismatch, original_config
from icve.models.hunyuan_video.key_names import to_original
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from tests.models.conftest import TINY


def on_meta(**settings):
    with torch.device("meta"):
        return HunyuanVideoInContextTransformer3DModel(**TINY | settings)


def in_both_namings(model):
    return model.state_dict(), to_original(model.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_embeds": True, "num_layers": 3, "num_single_layers": 0, "mlp_ratio": 2.0},
        {"num_layers": 0, "num_single_layers": 12, "num_refiner_layers": 2, "in_channels": 4, "out_channels": 4},
        {"patch_size": 1, "patch_size_t": 1},
    ],
)
def test_sizes_are_read_from_the_shapes_of_either_naming(settings):
    expected = TINY | settings
    for tensors in in_both_namings(on_meta(**settings)):
        config = config_from_shapes(tensors)
        assert {key: config[key] for key in config if key in expected} == {
            key: value for key, value in expected.items() if key != "rope_axes_dim"
        }


def test_the_original_configuration_and_back():
    model = on_meta(guidance_embeds=True, rope_theta=100.0)
    stored = original_config(model)
    for tensors in in_both_namings(model):
        config = config_from(stored, tensors)
        assert {key: config[key] for key in config} == {key: model.config[key] for key in config}


def test_other_models_are_told_apart():
    with pytest.raises(ValueError, match=r"image-to-video \(I2V\) model's \(image_condition_type 'token_replace'\)"):
        config_from({"image_condition_type": "token_replace", "num_attention_heads": 24}, {})
    assert config_from({"image_condition_type": None, "num_attention_heads": 24, "_class_name": "x"}, {}) == {
        "num_attention_heads": 24
    }
    with pytest.raises(ValueError, match="are a LoRA's"):
        config_from_shapes({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(1)})
    whole = on_meta().state_dict()
    del whole["context_embedder.proj_in.weight"]
    with pytest.raises(ValueError, match=r"not a whole transformer: 'context_embedder\.proj_in\.weight' is missing"):
        config_from_shapes(whole)


@pytest.mark.parametrize(
    ("wanted", "there", "named"),
    [
        (
            {"guidance_embeds": True},
            {},
            r"missing 'time_text_embed\.guidance_embedder.*likely a checkpoint without guidance embedding",
        ),
        (
            {},
            {"guidance_embeds": True},
            r"unexpected 'time_text_embed\.guidance_embedder.*likely a checkpoint with guidance embedding",
        ),
        ({"num_layers": 2}, {}, r"missing 'transformer_blocks\.1\..*num_layers is 2 where the weights have 1"),
        (
            {},
            {"num_single_layers": 5},
            r"unexpected 'single_transformer_blocks\.2\..*num_single_layers is 2 where the weights have 5",
        ),
        ({}, {"num_refiner_layers": 2}, r"num_refiner_layers is 1 where the weights have 2"),
        ({}, {"in_channels": 33}, r"33 input channels, not 16 \(image-to-video, I2V, instead of text-to-video, T2V\)"),
        ({}, {"num_attention_heads": 3}, r"a model of width 48, not 32"),
        ({}, {"patch_size": 1}, r"another patch size, \(1, 1, 1\) \(t, h, w\) instead of \(1, 2, 2\)"),
        ({}, {"text_embed_dim": 16}, r"another text encoder: text_embed_dim is 12, the weights' 16"),
    ],
)
def test_a_mismatch_names_keys_and_cause(wanted, there, named):
    assert mismatch(on_meta().state_dict(), on_meta().state_dict()) is None
    problem = mismatch(on_meta(**wanted).state_dict(), on_meta(**there).state_dict())
    assert re.search(named, problem), problem


def test_the_first_of_each_kind_is_named():
    expected = on_meta().state_dict()
    given = dict(expected)
    del given["transformer_blocks.0.attn.to_q.weight"]
    given["extra.weight"] = torch.zeros(1)
    given["proj_out.weight"] = torch.zeros(3, 32)
    problem = mismatch(expected, given)
    assert "missing 'transformer_blocks.0.attn.to_q.weight' (1 in all)" in problem
    assert "unexpected 'extra.weight' (1 in all)" in problem
    assert "'proj_out.weight' is (3, 32) where the model has (64, 32) (1 misshaped in all)" in problem
    del given["extra.weight"], given["proj_out.weight"]
    assert mismatch(expected, given).endswith("likely an incomplete download or export")
