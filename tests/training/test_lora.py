"""Training an adapter: what learns, what is saved, resuming, editing with it and starting another stage from it."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icve.cli import main as cli
from icve.editing.editors import load_editor
from icve.models.loading import load_transformer
from icve.models.lora import LORA_FILE, LoRA
from icve.runtime import precision
from icve.synthetic.pair_files import synthesize_pairs
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.stage_record import read_stage
from icve.training.start import Start
from tests.tiny import tiny_editor
from tests.training.runs import run_in_turn, steps

pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_editor(heads=2, num_frames=5).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, repository, weights):
    """The demo's second stage on the tiny editor's weights, with an adapter."""
    folder = tmp_path_factory.mktemp("data")
    manifest = synthesize_pairs(folder / "pairs", 6, split="train", sizes=[(32, 32)], frames=5)
    values = yaml.safe_load((repository / "configs/demo/sft.yaml").read_text())
    values["trainer"] |= {"max_steps": 4, "log_every_n_steps": 1, "val_check_interval": 2, "precision": "32"}
    values["trainer"]["callbacks"] = [
        {"class_path": "icve.training.callbacks.ema.EMA", "init_args": {"decay": 0.5}},
        {"class_path": "icve.training.callbacks.checkpoints.Checkpoints", "init_args": {"every_n_steps": 2}},
        {"class_path": "icve.training.callbacks.monitor.TrainingMonitor"},
    ]
    shape = json.loads((weights / "transformer" / "config.json").read_text())
    names = values["model"]["transformer"]["init_args"]
    values["model"]["transformer"]["init_args"] = {name: shape[name] for name in names}
    values["model"]["frozen"]["text_encoder"]["init_args"] = {"text_dim": 32, "pooled_dim": 32}
    values["model"] |= {
        "stage": "lora",
        "start": {"pretrained": str(weights), "lora": {"rank": 2, "weights_dtype": "float32"}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"shape": "constant", "warmup_steps": 0},
        "sampling": {"steps": 2, "guidance_scale": 1.0, "shift": 5.0, "num_frames": 5, "height": 32, "width": 32},
    }
    values["data"]["init_args"] |= {"manifest": str(manifest), "val_manifest": str(manifest), "batch_size": 2}
    values["data"]["init_args"]["buckets"] = [[32, 32, 5]]
    (folder / "lora.yaml").write_text(yaml.safe_dump(values))
    return folder / "lora.yaml"


def fit(config, run, *options) -> int:
    return cli.main(["fit", "-c", str(config), f"--trainer.default_root_dir={run}", *map(str, options)])


def losses(run) -> list[float]:
    return [line["loss"] for line in steps(run)]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "lora"
    assert fit(config, folder) == 0
    return folder


def test_checkpoints_hold_the_adapter_and_name_the_weights(run, weights):
    last = run / "checkpoints" / "last"
    assert json.loads((last / "adapted_weights.json").read_text()) == {"transformer": str(weights.resolve())}
    assert not (last / "transformer").exists()
    saved = CheckpointFolders().load_checkpoint(last)
    assert saved["state_dict"]
    assert all("lora_" in key for key in saved["state_dict"])
    adapter = load_file(last / LORA_FILE)
    assert max(value.abs().max() for key, value in adapter.items() if "lora_B" in key) > 0


def test_a_resumed_run_equals_an_uninterrupted_one(run, config, tmp_path):
    assert fit(config, tmp_path / "half", "--trainer.max_steps", 2) == 0
    assert fit(config, tmp_path / "half", "--ckpt_path", tmp_path / "half") == 0
    assert losses(tmp_path / "half") == losses(run)
    once, twice = (load_file(folder / "checkpoints/last" / LORA_FILE) for folder in (run, tmp_path / "half"))
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_the_run_edits_and_its_weights_are_the_base_plus_the_adapter(run, weights):
    base, adapted = load_transformer(weights), load_transformer(run)
    changed = {n for n, p in adapted.named_parameters() if not torch.equal(p, base.get_parameter(n))}
    assert changed
    assert not any("norm" in name or "embed" in name for name in changed)
    editor = load_editor(run)
    editor.set_progress_bar_config(disable=True)
    for name, parameter in editor.transformer.named_parameters():
        assert torch.equal(parameter, adapted.get_parameter(name))
    assert editor(torch.zeros(1, 3, 5, 32, 32), "make it red").video.shape == (1, 3, 5, 32, 32)


def test_another_stage_starts_from_the_adapted_weights(run, config, tmp_path, capsys):
    options = ["--model.stage", "next", "--trainer.max_steps", 2, "--ckpt_path", run]
    assert fit(config, tmp_path / "next", *options, "--model.start.lora", "null") == 0
    assert (tmp_path / "next" / "checkpoints" / "last" / "transformer").is_dir()


def test_an_adapter_needs_weights_and_the_configuration_it_was_trained_with(run, config, tmp_path, capsys):
    assert fit(config, tmp_path / "a", "--model.start.pretrained", "null") == 2
    assert "model.start.lora adapts trained weights" in capsys.readouterr().err
    assert fit(config, tmp_path / "b", "--ckpt_path", run, "--model.start.lora", "null", "--trainer.max_steps", 6) == 2
    assert "trained an adapter and the configuration trains whole weights" in capsys.readouterr().err


def test_weights_that_moved_are_named(run, weights, tmp_path):
    import shutil

    copy = tmp_path / "last"
    shutil.copytree(run / "checkpoints" / "last", copy)
    (copy / "adapted_weights.json").write_text('{"transformer": "/nowhere/icve"}')
    with pytest.raises(ValueError, match="/nowhere/icve, which are not there"):
        load_editor(copy)


SHARING = {
    "zero3": ["--trainer.strategy=tests.training.eventful.FetchingStrategy"],
    "fsdp": ["--trainer.strategy=icve.training.distributed.strategies.FSDPUlyssesStrategy"],
}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_processes_that_share_the_weights_train_the_same_adapter(run, config, tmp_path, capsys):
    """They share tokens, then, resumed, have samples of their own; also with frozen weights in bfloat16."""
    capsys.readouterr()
    validate = [
        "validate",
        "-c",
        str(config),
        f"--ckpt_path={run}",
        "--model.start.lora=null",
        "--model.start.pretrained=null",
    ]
    assert cli.main(validate) == 0
    (expected,) = validation_losses(capsys.readouterr().out)
    bf16 = ["--trainer.precision=bf16-mixed", "--model.start.lora.weights_dtype=bfloat16", "--trainer.max_steps=2"]
    assert fit(config, tmp_path / "bf16", *bf16) == 0

    commands = []
    for name, strategy in SHARING.items():
        two = ["--trainer.devices=2", *strategy, "--trainer.strategy.init_args.process_group_backend=gloo"]
        tokens = [*two, "--trainer.strategy.init_args.sequence_parallel_size=2"]
        fit_two = ["fit", "-c", str(config), "--model.checkpointing.mode=full"]
        folder = f"--trainer.default_root_dir={tmp_path / name}"
        commands += [
            [*fit_two, *tokens, folder, "--trainer.max_steps=2"],
            [*fit_two, *two, folder, f"--ckpt_path={tmp_path / name}"],
            [*fit_two, *tokens, folder + "_bf16", *bf16],
            [*validate, *tokens],
        ]
    assert validation_losses(run_in_turn(commands, 2, tmp_path, seconds=300)) == pytest.approx(
        [expected] * len(SHARING), rel=1e-5
    )
    once = load_file(run / "checkpoints/last" / LORA_FILE)
    for name in SHARING:
        shared = load_file(tmp_path / name / "checkpoints/last" / LORA_FILE)
        assert shared.keys() == once.keys()
        for key, value in once.items():
            torch.testing.assert_close(shared[key], value, rtol=1e-4, atol=1e-5)
        assert losses(tmp_path / f"{name}_bf16") == pytest.approx(losses(tmp_path / "bf16"), rel=1e-3)


def validation_losses(printed: str) -> list[float]:
    return [float(value) for value in re.findall(r"val/loss\s+\S\s+([\d.]+)", printed)]


@pytest.mark.parametrize(("ratio", "dtype"), [(50.0, "float32"), (0.2, "bfloat16")])
def test_frozen_weights_that_are_left_open_follow_the_precision_that_was_measured(
    config, tmp_path, monkeypatch, ratio, dtype
):
    def measured(tokens, width, backward):
        return precision.MatmulTimes(tokens, width, backward, 1.0, ratio)

    monkeypatch.setattr(precision, "measure_matmuls", measured)
    run = tmp_path / "run"
    options = ["--trainer.precision=auto", "--model.start.lora.weights_dtype=auto"]
    assert fit(config, run, *options, "--trainer.max_steps=1") == 0
    assert read_stage(run / "checkpoints" / "last")["weights_dtype"] == dtype
    ratio = 1 / ratio  # resumed on another machine, they stay what they were
    assert fit(config, run, *options, "--trainer.max_steps=2", f"--ckpt_path={run}") == 0
    assert read_stage(run / "checkpoints" / "last")["weights_dtype"] == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_weights_are_of_the_dtype_that_is_named(make_module, dtype):
    wrapped = make_module(start=Start(lora=LoRA(rank=2, weights_dtype=dtype)))
    assert {parameter.dtype for parameter in wrapped.transformer.parameters()} == {getattr(torch, dtype)}
