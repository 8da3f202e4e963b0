import logging

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file

from icve.cli.convert import main as convert
from icve.editing.editors import load_editor
from icve.models.loading import load_transformer


def test_there_and_back_is_exact(tiny_model, tmp_path, capsys):
    there, back = tmp_path / "icve", tmp_path / "back"
    assert convert(["weights", "--input", f"{tiny_model}", "--output", f"{there}", "--format", "icve"]) == 0
    assert "file(s)" in capsys.readouterr().out
    (weights,) = there.glob("*.safetensors")
    assert "double_blocks.0.img_attn_qkv.weight" in load_file(weights)
    assert convert(["weights", "--input", f"{there}", "--output", f"{back}", "--max-shard-size", "20KB"]) == 0
    assert len(list(back.glob("*.safetensors"))) > 1
    before, after = (load_transformer(path).state_dict() for path in (tiny_model, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_types_change_only_when_asked(tiny_model, tmp_path):
    assert (
        convert(["weights", "--input", f"{tiny_model}", "--output", f"{tmp_path / 'half'}", "--dtype", "bfloat16"]) == 0
    )
    (weights,) = (tmp_path / "half").glob("*.safetensors")
    before, after = load_transformer(tiny_model).state_dict(), load_file(weights)
    assert all(torch.equal(before[key].bfloat16(), after[key]) for key in before)


def test_the_autoencoder(tmp_path, capsys):
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    torch.save({"state_dict": {f"vae.{key}": value for key, value in vae.state_dict().items()}}, tmp_path / "vae.pt")
    assert convert(["vae", "--input", f"{tmp_path / 'vae.pt'}", "--output", f"{tmp_path / 'out'}"]) == 0
    vae.save_pretrained(tmp_path / "repository" / "vae")
    options = ["--output", f"{tmp_path / 'again'}", "--max_shard_size", "5GB"]
    assert convert(["vae", "--input", f"{tmp_path / 'repository'}", *options]) == 0
    loaded = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "out").state_dict()
    again = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in again.items())
    assert all(torch.equal(loaded[key], value) for key, value in vae.state_dict().items())
    assert loaded.keys() == vae.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["weights", "--input", "absent"], "No checkpoint at 'absent'"),
        (["vae", "--input", "absent"], "No autoencoder at 'absent'"),
        (["weights", "--input", "absent", "--max-shard-size", "big"], "'big' is no size"),
        (["lora", "--input", "absent"], "no adapter at"),
        (["merge", "--model", "absent", "--lora", "nowhere"], "no adapter at"),
        (["editor", "--input", "absent"], "absent"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, arguments, sentence):
    assert convert([*arguments, "--output", f"{tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["weights", "vae", "editor"])
def test_nothing_is_overwritten(kind, tiny_model, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert convert([kind, "--input", f"{tiny_model}", "--output", f"{tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_editor_is_stored_small_and_loads_as_before(tiny_model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    assert convert(["editor", "--input", f"{tiny_model}", "--output", f"{tmp_path / 'model'}"]) == 0
    assert "float32" not in caplog.text  # nothing is asked of the user
    (weights,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
    size = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors"))
    assert size < 0.6 * sum(file.stat().st_size for file in tiny_model.rglob("*.safetensors"))
    before, after = load_editor(tiny_model, "cpu"), load_editor(tmp_path / "model", "cpu")
    for one, two in zip(before.transformer.parameters(), after.transformer.parameters(), strict=True):
        assert two.dtype == torch.float32
        assert torch.allclose(one, two, rtol=1e-2)
    assert after.config.defaults == before.config.defaults
    options = ["--output", f"{tmp_path / 'other'}", "--steps", "7", "--solver", "unipc"]
    assert convert(["editor", "--input", f"{tiny_model}", *options]) == 0
    other = load_editor(tmp_path / "other", "cpu").config.defaults
    assert other == before.config.defaults | {"steps": 7, "solver": "unipc"}
