import importlib.util

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file

from icve.models.loading import load_transformer


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("convert_checkpoint", repository / "tools" / "convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_and_back_is_exact(tool, tiny_model, tmp_path, capsys):
    tool.main(["--input", f"{tiny_model}", "--output", f"{tmp_path / 'icve'}", "--format", "icve"])
    assert "file(s)" in capsys.readouterr().out
    (weights,) = (tmp_path / "icve").glob("*.safetensors")
    assert "double_blocks.0.img_attn_qkv.weight" in load_file(weights)
    command = ["--input", f"{tmp_path / 'icve'}", "--output", f"{tmp_path / 'back'}", "--max-shard-size", "20KB"]
    tool.main(command)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    before, after = (load_transformer(path).state_dict() for path in (tiny_model, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_types_change_only_when_asked(tool, tiny_model, tmp_path):
    tool.main(["--input", f"{tiny_model}", "--output", f"{tmp_path / 'half'}", "--dtype", "bfloat16"])
    (weights,) = (tmp_path / "half").glob("*.safetensors")
    before, after = load_transformer(tiny_model).state_dict(), load_file(weights)
    assert all(torch.equal(before[key].bfloat16(), after[key]) for key in before)


def test_the_autoencoder(tool, tmp_path, capsys):
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    torch.save({"state_dict": {f"vae.{key}": value for key, value in vae.state_dict().items()}}, tmp_path / "vae.pt")
    tool.main(["--vae", "--input", f"{tmp_path / 'vae.pt'}", "--output", f"{tmp_path / 'out'}"])
    loaded = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in vae.state_dict().items())
    assert loaded.keys() == vae.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "absent"], "No checkpoint at 'absent'"),
        (["--input", "absent", "--vae"], "No autoencoder at 'absent'"),
        (["--input", "absent", "--vae", "--format", "icve"], "leave out --format icve"),
        (["--input", "absent", "--max-shard-size", "big"], "'big' is no size"),
    ],
)
def test_errors_are_one_sentence(tool, tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, "--output", f"{tmp_path / 'out'}"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tool, tiny_model, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        tool.main(["--input", f"{tiny_model}", "--output", f"{tmp_path}"])
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
