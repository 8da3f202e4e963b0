"""An exported editor with a damaged shard is told of in a sentence, and what it advises works."""

import shutil

import pytest

from icve.cli.main import main
from icve.models import run_folders
from icve.models.run_folders import exported
from icve.runtime import folder_contents


@pytest.fixture
def config(tiny_yaml):
    """Checkpoints of steps 2 and 4, both exported in bfloat16."""
    tiny_yaml.write_text(tiny_yaml.read_text().replace("keep_last: 0", "keep_last: 0, export_dtype: bfloat16"))
    return tiny_yaml


def spoil(folder, how):
    (shard,) = (folder / "transformer").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    return shard


@pytest.mark.parametrize(("how", "large"), [("truncated", False), ("flipped", True)])
def test_edits_of_a_run_whose_newest_editor_is_damaged(
    config, make_clip, tmp_path, monkeypatch, capsys, caplog, how, large
):
    run = tmp_path / "run"
    assert main(["fit", "-c", str(config)]) == 0
    monkeypatch.setattr(run_folders, "tell_once", run_folders.tell)
    if large:  # a glance does not look into such files
        monkeypatch.setattr(folder_contents, "_SMALL", 0)
    shard = spoil(run / "checkpoints" / "step-000004", how)
    clip = make_clip("clip.mp4", frames=5, size=(32, 32))

    def edit(model, output):
        capsys.readouterr()
        caplog.clear()
        options = ["--input", clip, "--output", tmp_path / output, "--instruction", "make it red", "--steps", 1]
        status = main(list(map(str, ["edit", "--model", model, *options])))
        return status, capsys.readouterr().err + caplog.text

    # The checkpoint itself: one sentence.
    status, said = edit(shard.parents[1], "named")
    assert status == 2
    (sentence,) = [line for line in said.splitlines() if "is damaged" in line]
    assert str(shard) in sentence
    assert sentence.endswith(run_folders.EXPORT_AGAIN + ".")
    # The run: the editor before it, unless only reading all of the shard shows that it is damaged.
    status, said = edit(run, "run")
    seen_at_a_glance = not (large and how == "flipped")
    assert status == (0 if seen_at_a_glance else 2)
    assert ("step-000002 is taken instead" in said) == seen_at_a_glance
    assert (run_folders.EXPORT_AGAIN in said) == (not seen_at_a_glance)
    # What is advised.
    assert edit(run / "checkpoints" / "step-000002", "earlier")[0] == 0
    shutil.rmtree(shard.parents[1])
    assert main(["fit", "-c", str(config), "--ckpt_path", str(run)]) == 0
    assert exported(shard.parents[1])
    assert edit(run, "again")[0] == 0


def test_the_only_checkpoint_is_damaged(config, tmp_path, capsys):
    assert main(["fit", "-c", str(config), "--trainer.max_steps=2"]) == 0
    spoil(tmp_path / "run" / "checkpoints" / "step-000002", "truncated")
    options = ["--input", str(config), "--output", str(tmp_path / "out"), "--instruction", "make it red"]
    assert main(["edit", "--model", str(tmp_path / "run"), *options]) == 2
    assert "is damaged" in capsys.readouterr().err
