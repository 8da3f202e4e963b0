"""What docs/wan.md shows runs, in its order, on the tiny twins of the configurations that it names."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from icve.cli.main import main
from icve.data.media.video import probe
from icve.models.loading import load_transformer
from tests.test_readme import blocks, commands_of

# What stands for what it names; a run is where the twin's configuration puts it.
TINY = {
    "configs/wan/": "configs/debug/wan/",
    "runs/wan/": "runs/debug/wan/",
    "weights/wan2.1-1.3b": "runs/debug/weights-wan",
    "data/clips.parquet": "runs/debug/data/manifest.parquet",
    " clips/": " clips",
}
ONE_DEVICE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
ONE_DEVICE += ["--trainer.enable_progress_bar", "false"]
SMALL = ["--steps", "1", "--device", "cpu", "--window", "5", "--pixels", "6144"]  # exported weights name no size
MORE = {"fit": ONE_DEVICE, "edit": SMALL, "inspect-data": ["--output", "runs/debug/seen"]}


def on_twins(line: str, repository: Path) -> list[str]:
    """Arguments of `icve`, of the twin of a command."""
    for name, other in TINY.items():
        line = line.replace(name, other)
    program, command, *options = shlex.split(line)
    assert program == "icve"
    options = [str(repository / word) if word.startswith("configs/") else word for word in options]
    return [command, *options, *MORE.get(command, [])]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_way_from_data_to_edits(tmp_path, monkeypatch, repository, make_tiny_weights):
    monkeypatch.chdir(tmp_path)
    train, adapt, tiny, edit, _ = (commands_of(block) for name, block in blocks("bash") if name == "wan.md")
    tool, synthesize, _ = tiny
    assert shlex.split(tool)[1:] == ["tools/make_tiny_weights.py", "runs/debug/weights-wan", "--family", "wan"]
    make_tiny_weights(Path("runs/debug/weights-wan"), family="wan")
    # The adapter is one of the trained editor.
    monkeypatch.setenv("ICVE_DEBUG_WAN_EDITOR", "runs/debug/wan/sft_1.3b")
    assert main(on_twins(synthesize, repository)) == 0
    Path("clips").mkdir()
    for clip in sorted(Path("runs/debug/data/sources").iterdir())[:2]:
        shutil.copy(clip, "clips")
    for line in (*train, *adapt, *edit):
        assert main(on_twins(line, repository)) == 0, line
    for name in ("sft_1.3b", "sft_lora_1.3b", "exported"):
        assert load_transformer(Path("runs/debug/wan") / name).config.num_layers == 3
    adapted, merged = (load_transformer(Path("runs/debug/wan") / name) for name in ("sft_lora_1.3b", "merged"))
    for name, weights in adapted.named_parameters():
        # What a run exports is rounded to bfloat16, once more after the adapter was added.
        torch.testing.assert_close(merged.get_parameter(name).float(), weights.float(), rtol=2**-7, atol=1e-5)
    for name in ("edits", "adapted", "again"):
        edits = sorted((Path("runs/debug/wan") / name).glob("*.mp4"))
        assert len(edits) == 2
        assert probe(edits[0]).frames > 5
