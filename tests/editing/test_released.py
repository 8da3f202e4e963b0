"""`icve edit` with published weights: an ICVE transformer and HunyuanVideo's parts, tiny and in their real layouts."""

import json
import shutil

import pytest
import torch

from icve.cli import edit
from icve.data.media.video import probe
from icve.editing.released import released_editor
from icve.editing.sampling import NEGATIVE_PROMPT
from icve.models.hunyuan_video.base import diffusers_vae
from icve.models.hunyuan_video.codec_checkpoint import load_vae
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import export_transformer
from tests.tiny_hunyuan import save_tiny_hunyuan


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(ICVE transformer in its original layout, HunyuanVideo folder)."""
    folder = tmp_path_factory.mktemp("weights")
    base = folder / "hunyuan"
    save_tiny_hunyuan(base)
    llama = json.loads((base / "text_encoder" / "config.json").read_text())
    clip = json.loads((base / "text_encoder_2" / "config.json").read_text())
    vae = json.loads((base / "vae" / "config.json").read_text())
    torch.manual_seed(0)
    transformer = HunyuanVideoInContextTransformer3DModel(
        in_channels=vae["latent_channels"],
        out_channels=vae["latent_channels"],
        num_attention_heads=1,
        attention_head_dim=128,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=llama["hidden_size"],
        pooled_projection_dim=clip["hidden_size"],
    )
    export_transformer(transformer, folder / "icve", "icve")
    return folder / "icve", base


def run(weights, source, output, *options) -> int:
    parts = ["--transformer", weights[0], "--base", weights[1], "--input", source, "--output", output]
    return edit.main([str(word) for word in [*parts, "--instruction", "make it red", *options]])


def test_a_released_checkpoint_edits(weights, make_clip, tmp_path, capsys):
    clip = make_clip("a.mp4", frames=5, size=(48, 80))
    options = ["--steps", 1, "--guidance", 1, "--window", 5, "--pixels", 48 * 80]
    assert run(weights, clip, tmp_path / "out", *options) == 0, capsys.readouterr().err
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert row["settings"]["model"] == str(weights[0])
    assert row["settings"]["negative_prompt"] == NEGATIVE_PROMPT
    assert probe(tmp_path / "out" / "a.mp4").frames == 5
    capsys.readouterr()
    assert run(weights, clip, tmp_path / "out", *options) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1


def test_the_defaults_are_the_release_s(weights):
    editor = released_editor(*weights, "cpu")
    assert [editor.default(name) for name in ("steps", "guidance_scale", "shift")] == [50, 6.0, 7.0]
    assert editor.transformer.config.guidance_embeds


def test_wan_s_own_defaults_reach_the_edit_and_the_saved_editor(make_tiny_weights, make_clip, tmp_path):
    folder = make_tiny_weights(tmp_path / "wan", family="wan")
    weights = folder / "transformer", folder
    clip = make_clip("a.mp4", frames=5, size=(32, 32))
    assert run(weights, clip, tmp_path / "out", "--steps", 1, "--window", 5, "--pixels", 32 * 32) == 0
    expected = {"guidance_scale": 5.0, "shift": 5.0, "negative_prompt": NEGATIVE_PROMPT}
    settings = json.loads((tmp_path / "out" / "results.jsonl").read_text())["settings"]
    assert {name: settings[name] for name in expected} == expected
    released_editor(*weights, "cpu").save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "model_index.json").read_text())["defaults"]
    assert {name: saved[name] for name in expected} == expected
    assert json.loads((tmp_path / "saved" / "scheduler" / "scheduler_config.json").read_text())["shift"] == 5.0


def test_the_editor_is_saved_with_its_weights_and_loads(weights, tmp_path):
    from icve.editing.pipeline import EditPipeline

    editor = released_editor(*weights, "cpu")
    editor.save_pretrained(tmp_path / "whole", embed=True)
    again = EditPipeline.from_pretrained(tmp_path / "whole")
    for pipeline in (editor, again):
        pipeline.set_progress_bar_config(disable=True)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    first, second = (
        pipeline(video, "make it red", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).video
        for pipeline in (editor, again)
    )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_tencents_autoencoder_is_converted_once_into_the_cache(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "vae"
    folder.mkdir()
    shutil.copy(weights[1] / "vae" / "config.json", folder)
    from safetensors.torch import load_file

    torch.save(load_file(next((weights[1] / "vae").glob("*.safetensors"))), folder / "pytorch_model.pt")
    converted = diffusers_vae(folder)
    assert converted.parent == tmp_path / "cache" / "icve"
    made = {file.name: file.stat().st_mtime_ns for file in converted.iterdir()}
    assert diffusers_vae(folder) == converted
    assert {file.name: file.stat().st_mtime_ns for file in converted.iterdir()} == made
    for one, two in zip(load_vae(converted).parameters(), load_vae(weights[1] / "vae").parameters(), strict=True):
        assert torch.equal(one, two)
    assert diffusers_vae(weights[1] / "vae") == weights[1] / "vae"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "absent"], "There is no folder 'absent'"),
        (["--transformer", "absent"], "No checkpoint at 'absent'"),
        (["--model", "runs/demo"], "take the place of --model"),
    ],
)
def test_missing_parts_are_named(options, message, weights, make_clip, tmp_path, capsys):
    assert run(weights, make_clip("a.mp4"), tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
