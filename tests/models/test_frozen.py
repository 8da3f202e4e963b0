"""An editor with frozen published parts: its folder refers to their weights or holds them; its runs never do."""

import json
import shutil

import accelerate
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from icve.editing.pipeline import EditPipeline
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.text import HunyuanTextEncoder
from tests.tiny import tiny_editor
from tests.tiny_hunyuan import POOLED_DIM, TEXT_DIM, save_tiny_hunyuan
from tests.training.conftest import tiny_transformer

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path):
    return {name: str(path) for name, path in save_tiny_hunyuan(tmp_path / "base").items()}


@pytest.fixture
def editor(base) -> EditPipeline:
    parts = HunyuanVideoCodec(base["vae"]), HunyuanTextEncoder(base["llama"], base["clip"])
    transformer = tiny_transformer(text_embed_dim=TEXT_DIM, pooled_projection_dim=POOLED_DIM).eval()
    editor = EditPipeline(*parts, FlowMatchEulerDiscreteScheduler(shift=5.0), transformer)
    editor.set_progress_bar_config(disable=True)
    return editor


def edit(editor: EditPipeline) -> torch.Tensor:
    editor.set_progress_bar_config(disable=True)
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return editor(video, "remove it", 2, guidance_scale=3.0, generator=torch.Generator().manual_seed(1)).video


def weights_in(folder) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors"))


def test_a_folder_with_references(editor, tmp_path):
    edited = edit(editor)
    editor.save_pretrained(tmp_path / "editor")
    assert weights_in(tmp_path / "editor") == ["transformer/diffusion_pytorch_model.safetensors"]
    index = json.loads((tmp_path / "editor" / "model_index.json").read_text())
    assert index["codec"] == ["icve.models.hunyuan_video.codec", "HunyuanVideoCodec"]
    assert index["text_encoder"] == ["icve.models.hunyuan_video.text", "HunyuanTextEncoder"]
    loaded = EditPipeline.from_pretrained(tmp_path / "editor")
    assert torch.equal(edit(loaded), edited)


def test_a_folder_with_everything_in_it(editor, tmp_path):
    edited = edit(editor)
    editor.save_pretrained(tmp_path / "editor", embed=True)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "editor").rename(tmp_path / "moved")
    assert weights_in(tmp_path / "moved") == [
        "codec/pretrained/diffusion_pytorch_model.safetensors",
        "text_encoder/clip/model.safetensors",
        "text_encoder/llama/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    assert torch.equal(edit(EditPipeline.from_pretrained(tmp_path / "moved")), edited)


def test_parts_without_weights_are_saved_alike(tmp_path):
    for embed in (False, True):
        tiny_editor().save_pretrained(tmp_path / str(embed), embed=embed)
    files = [sorted(file.name for file in (tmp_path / name).rglob("*")) for name in ("False", "True")]
    assert files[0] == files[1]


def test_the_precision_of_a_pipeline_is_its_transformers(editor, tmp_path):
    editor.save_pretrained(tmp_path / "editor")
    half = EditPipeline.from_pretrained(tmp_path / "editor", dtype=torch.bfloat16).to("cpu")
    edit(half)
    assert half.transformer.dtype == torch.bfloat16
    assert half.codec.dtype == half.text_encoder.dtype == torch.float32


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
def test_an_editor_that_is_offloaded_before_its_first_edit(editor, base, offload, monkeypatch):
    edited = edit(editor)
    parts = HunyuanVideoCodec(base["vae"]), HunyuanTextEncoder(base["llama"], base["clip"])
    fresh = EditPipeline(*parts, editor.scheduler, editor.transformer)
    if offload == "model":
        fresh.enable_model_cpu_offload(device="cpu")
    elif offload == "sequential":
        # diffusers names the device by its number, and a CPU has none.
        offloaded = accelerate.cpu_offload
        monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **kwargs: offloaded(model, CPU, **kwargs))
        fresh.enable_sequential_cpu_offload(device="cpu")
        assert {parameter.device.type for parameter in fresh.transformer.parameters()} == {"meta"}
        assert {parameter.device.type for parameter in fresh.codec.parameters()} == {"meta"}
    else:
        fresh.enable_group_offload(CPU, offload_type="leaf_level")
    assert list(fresh.codec.parameters())
    torch.testing.assert_close(edit(fresh), edited, atol=1e-6, rtol=0)
