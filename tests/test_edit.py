"""`icve-edit`: sizes, windows, files in and out, and one sentence for everything a user can get wrong."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from icve import edit
from icve.codec import DCTCodec
from icve.data.video import probe, read_frames, write_video
from icve.model import HunyuanVideoInContextTransformer3DModel
from icve.pipeline import EditPipeline
from icve.text import HashedTextEncoder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    transformer = HunyuanVideoInContextTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    defaults = {"steps": 2, "guidance_scale": 1.0, "shift": 5.0, "num_frames": 5, "height": 32, "width": 32, "fps": 8}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    folder = tmp_path_factory.mktemp("model")
    EditPipeline(DCTCodec(), HashedTextEncoder(32, 32), scheduler, transformer, defaults=defaults).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def clip(tmp_path) -> Path:
    """12 frames of 48x80 at 10 per second: three windows of the model, the last one reaching back."""
    path = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 6, 10, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(path, frames, 10)
    return path


class RecordingPipeline:
    """Stands for an editor whose edit adds 10 to every pixel."""

    def __init__(self):
        self.calls = []

    def default(self, name):
        return {"num_frames": 5, "height": 32, "width": 32}[name]

    def __call__(self, video, instruction, generator, output_type, **settings):
        self.calls.append((video, instruction, generator.initial_seed(), output_type, settings))
        return video + 10


@pytest.mark.parametrize("budget", [64 * 64, 240 * 384, 480 * 768])
@pytest.mark.parametrize(
    "picture", [(720, 1280), (1280, 720), (480, 480), (199, 351), (480, 640), (480, 832), (1000, 100)]
)
def test_model_size_keeps_the_picture_and_the_budget(picture, budget):
    height, width = edit.model_size(*picture, budget)
    assert height % 16 == 0
    assert width % 16 == 0
    assert abs(math.log(width * picture[0] / (height * picture[1]))) < 0.06
    assert 0.5 < height * width / budget < 2


def test_model_size_of_its_own_size_is_itself():
    assert edit.model_size(64, 64, 64 * 64) == (64, 64)
    assert edit.model_size(240, 384, 240 * 384) == (240, 384)


@pytest.mark.parametrize(("frames", "length"), [(1, 9), (9, 9), (10, 9), (18, 9), (33, 9), (3, 1)])
def test_windows_cover_every_frame_with_whole_windows(frames, length):
    spans = edit.windows(frames, length)
    assert sorted({i for start, count in spans for i in range(start, start + count)}) == list(range(frames))
    assert {count for _, count in spans} == {min(frames, length)}
    assert spans == sorted(set(spans))
    assert all(start + count <= frames for start, count in spans)


@pytest.mark.parametrize(("frames", "calls"), [(1, [1]), (3, [5]), (5, [5]), (7, [5, 5])])
def test_clips_of_any_length_come_back_whole(frames, calls):
    pipeline = RecordingPipeline()
    clip = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), dtype=np.uint8)
    edited = edit.edit_clip(pipeline, clip, "brighter", 3, guidance_scale=2.0)
    assert np.array_equal(edited, clip + 10)
    assert [call[0].shape[2] for call in pipeline.calls] == calls
    assert all(call[1:] == ("brighter", 3, "uint8", {"guidance_scale": 2.0}) for call in pipeline.calls)
    if frames == 3:  # continued by its last frame
        assert pipeline.calls[0][0][0, 0, :, 0, 0].tolist() == [0, 1, 2, 2, 2]


def test_output_has_the_source_s_shape_and_the_summary_says_what_was_done(model_folder, clip, tmp_path, capsys):
    arguments = ["--model", str(model_folder), "--input", str(clip), "--output", str(tmp_path / "out")]
    assert edit.main([*arguments, "--instruction", " make it red ", "--steps", "1", "--seed", "4"]) == 0
    summary = json.loads(capsys.readouterr().out)
    output = tmp_path / "out" / "clip.mp4"
    assert summary["output"] == str(output)
    assert summary["instruction"] == "make it red"
    assert (summary["windows"], summary["frames"], summary["seed"]) == (3, 12, 4)
    assert summary["settings"] == {"num_inference_steps": 1}
    before, after = probe(clip), probe(output)
    assert (after.frames, after.fps, after.width, after.height) == (before.frames, before.fps, 80, 48)
    assert (read_frames(output).astype(int) - read_frames(clip)).any()
    assert [path.name for path in output.parent.iterdir()] == ["clip.mp4"]


def test_same_seed_same_file(model_folder, clip, tmp_path, capsys):
    results = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = ["--model", str(model_folder), "--input", str(clip), "--output", str(tmp_path / name)]
        assert edit.main([*arguments, "--instruction", "make it red", "--seed", seed]) == 0
        results.append((tmp_path / name / "clip.mp4").read_bytes())
    assert results[0] == results[1] != results[2]


def test_real_video_of_odd_size(model_folder, shared_data, tmp_path, capsys):
    source = shared_data / "videos" / "bad" / "odd_dims_351x199.mp4"
    arguments = ["--model", str(model_folder), "--input", str(source), "--output", str(tmp_path)]
    assert edit.main([*arguments, "--instruction", "make it red", "--steps", "1"]) == 0
    after = probe(tmp_path / source.name)
    assert after.frames == probe(source).frames
    assert (after.width, after.height) == (352, 200)


def test_run_checkpoint_and_model_folders_are_all_models(model_folder, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-000002"
    shutil.copytree(model_folder, checkpoint)
    (tmp_path / "checkpoints" / "last").symlink_to(checkpoint.name)
    assert edit.resolve_model_folder(checkpoint) == checkpoint
    assert edit.resolve_model_folder(tmp_path).resolve() == checkpoint
    with pytest.raises(FileNotFoundError, match="holds no model"):
        edit.resolve_model_folder(tmp_path / "checkpoints")


def unreadable_model(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def truncated_model(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def mismatched_model(folder: Path) -> None:
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"text_embed_dim": 48}))


def componentless_model(folder: Path) -> None:
    shutil.rmtree(folder / "codec")


@pytest.mark.parametrize("damage", [unreadable_model, truncated_model, mismatched_model, componentless_model])
def test_damaged_models_are_named(damage, model_folder, clip, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    damage(folder)
    arguments = ["--model", str(folder), "--input", str(clip), "--output", str(tmp_path / "out")]
    assert edit.main([*arguments, "--instruction", "make it red"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"icve-edit: The model in {folder} cannot be loaded: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "absent"}, "model folder absent does not exist"),
        ({"--input": "absent.mp4"}, "input absent.mp4 is not a file"),
        ({"--instruction": "  "}, "instruction is empty"),
        ({"--steps": "0"}, "--steps must be at least 1"),
        ({"--shift": "0"}, "--shift must be positive"),
        ({"--device": "abacus"}, "cannot be moved to the device 'abacus'"),
    ],
)
def test_usage_errors_are_one_sentence(change, message, model_folder, clip, tmp_path, capsys):
    options = {"--model": model_folder, "--input": clip, "--instruction": "make it red", "--output": tmp_path / "out"}
    arguments = [str(word) for option in (options | change).items() for word in option]
    assert edit.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err.strip().splitlines()[-1]
    assert captured.out == ""
    assert not (tmp_path / "out" / "clip.mp4").exists()


def test_output_that_cannot_be_is_found_out_before_editing(model_folder, clip, tmp_path, capsys):
    options = ["--model", str(model_folder), "--input", str(clip), "--instruction", "make it red"]
    blocked = tmp_path / "file"
    blocked.touch()
    assert edit.main([*options, "--output", str(blocked)]) == 2
    assert f"The output folder {blocked} cannot be written to" in capsys.readouterr().err
    before = clip.read_bytes()
    assert edit.main([*options, "--output", str(clip.parent)]) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert clip.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"this is a text, not a video"])
def test_undecodable_input_fails_with_its_reason(content, model_folder, tmp_path, capsys):
    source = tmp_path / "bad.mp4"
    source.write_bytes(content)
    arguments = ["--model", str(model_folder), "--input", str(source), "--output", str(tmp_path / "out")]
    assert edit.main([*arguments, "--instruction", "make it red"]) == 3
    assert f"icve-edit: {source} cannot be decoded: it " in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_help_needs_no_torch():
    code = "import sys, icve.edit; icve.edit.build_parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
