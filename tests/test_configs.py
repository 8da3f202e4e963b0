"""Every shipped training configuration is built, and the demo's also train on real videos."""

import json
from pathlib import Path

import pytest
import yaml

from icve.cli import main
from icve.training.command import TrainingCommand

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))
DEMO = {path.stem: path for path in CONFIGS if path.parent.name == "demo"}
# The same configuration on fewer layers and steps.
SMALL = ["--model.transformer.init_args.num_layers", "1", "--model.transformer.init_args.num_single_layers", "1"]
SMALL += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"]
SMALL += ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
SMALL += ["--data.init_args.batch_size", "2", "--data.init_args.buckets", "[[48, 80, 5]]"]


class Built(Exception):
    """Raised instead of training."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_built(path, tmp_path, monkeypatch):
    def stop(self, subcommand):
        self.built = (self.trainer, self.model, self.datamodule)
        raise Built(self)

    monkeypatch.setattr(TrainingCommand, "_run_subcommand", stop)
    with pytest.raises(Built) as built:
        TrainingCommand(["fit", "-c", str(path), "--trainer.default_root_dir", str(tmp_path)])
    command = built.value.args[0]
    assert command.trainer.max_steps > 0
    assert command.model.stage
    sampling, (bucket, *_) = command.model.sampling, command.datamodule.buckets
    assert (sampling.height, sampling.width, sampling.num_frames) in [tuple(b) for b in command.datamodule.buckets]
    assert bucket.frames % 4 == 1


def test_the_demo_stages_differ_where_they_must_and_share_the_model():
    assert set(DEMO) == {"pretrain", "sft"}
    pretrain, sft = (yaml.safe_load(DEMO[name].read_text()) for name in ("pretrain", "sft"))
    assert pretrain["model"]["stage"] != sft["model"]["stage"]
    assert pretrain["trainer"]["default_root_dir"] != sft["trainer"]["default_root_dir"]
    for part in ("transformer", "codec", "text_encoder", "objective"):
        assert pretrain["model"][part] == sft["model"][part]


def fit(name, folder, *arguments):
    run = folder / name
    status = main(["fit", "-c", str(DEMO[name]), *SMALL, "--trainer.default_root_dir", str(run), *map(str, arguments)])
    assert status == 0
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["loss"] > 0 for line in lines)
    return run, lines


@pytest.mark.slow
def test_the_demo_trains_on_real_clips_and_then_on_real_pairs(shared_data, tmp_path):
    from icve.curation.clip_pairs import clip_pairs

    made = clip_pairs(
        shared_data / "videos" / "long",
        tmp_path / "clips",
        frames=5,
        fps=8.0,
        annotate=lambda video, a, b: f"move on by {b[0] - a[0]} frames",
        pairs_per_scene=1,
    )
    data = ["--data.init_args.fps", 8, "--data.init_args.manifest", made.manifest]
    run, _ = fit("pretrain", tmp_path, *data, "--data.init_args.val_manifest", "null")

    manifest = shared_data / "videos" / "manifest.jsonl"
    pairs = {json.loads(line)["id"] for line in manifest.read_text().splitlines() if json.loads(line).get("target")}
    assert len(pairs) == 14
    data = ["--data.init_args.columns", '{"source": "source_path", "target": "target_path"}']
    data += ["--data.init_args.manifest", manifest, "--data.init_args.val_manifest", "null"]
    sft, lines = fit("sft", tmp_path, *data, "--ckpt_path", run)
    used = [name for line in lines for name in line["ids"]]
    assert len(used) == 6
    assert set(used) <= pairs
    assert (sft / "checkpoints" / "last" / "model_index.json").is_file()
