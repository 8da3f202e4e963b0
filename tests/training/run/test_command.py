"""The command itself is tested through icve.cli.main, as a user types it (tests/cli/test_main.py has the rest)."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icve.cli.main import main
from icve.training.checkpoints.stage_record import read_stage
from tests.training.runs import steps


@pytest.fixture
def fit(tiny_yaml, tmp_path, capsys):
    """Run `icve fit` with the tiny configuration; returns (exit status, the last line of stderr)."""

    def run(*arguments, command="fit"):
        status = main([command, "-c", str(tiny_yaml), *map(str, arguments)])
        return status, capsys.readouterr().err.strip().splitlines()[-1:]

    run.folder = tmp_path / "run"
    return run


def test_a_run_folder_has_everything(fit):
    assert fit()[0] == 0
    run = fit.folder
    assert sorted(os.listdir(run)) == ["checkpoints", "config.yaml", "environment.json", "steps.jsonl", "tensorboard"]
    assert sorted(os.listdir(run / "checkpoints")) == ["last", "step-000002", "step-000004"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["seed"] == 0  # resolved
    assert config["trainer"]["max_steps"] == 4
    assert len(steps(run)) == 4


def test_the_same_stage_resumes_and_another_starts_from_the_weights(fit, caplog):
    caplog.set_level(logging.INFO)
    assert fit()[0] == 0
    run = fit.folder
    whole = steps(run)

    shutil.rmtree(run / "checkpoints" / "step-000004")  # as if killed in between; `last` dangles
    assert fit("--ckpt_path", run)[0] == 0
    assert steps(run) == whole
    assert "resumes at step 2" in caplog.text
    assert len(json.loads((run / "environment.json").read_text())) == 2

    other = run.parent / "other"
    arguments = ["--model.stage", "next", "--trainer.default_root_dir", other, "--trainer.max_steps", 1]
    arguments += ["--model.optimizer.init_args.lr", 0.0]
    assert fit(*arguments, "--ckpt_path", run / "checkpoints" / "last")[0] == 0
    assert "starts at step 0 from the weights" in caplog.text
    weights = [load_file(r / "checkpoints" / "last" / "transformer" / "diffusion_pytorch_model.safetensors")
               for r in (run, other)]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    saved = torch.load(other / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.0  # the new configuration's
    begun = {"stage": "next", "step": 1, "micro_steps": 1, "seed": 0, "precision": "32-true"}
    assert begun.items() <= read_stage(other / "checkpoints" / "last").items()


@pytest.mark.slow
def test_weights_and_full_override_the_stage(fit, caplog):
    caplog.set_level(logging.INFO)
    assert fit("--trainer.max_steps", 2)[0] == 0
    checkpoint = fit.folder / "checkpoints" / "last"
    elsewhere = ["--trainer.default_root_dir", fit.folder.parent / "elsewhere", "--trainer.max_steps", 3]
    assert fit(*elsewhere, "--ckpt_path", checkpoint, "--resume_mode", "weights")[0] == 0
    assert len(steps(fit.folder.parent / "elsewhere")) == 3
    shutil.rmtree(fit.folder.parent / "elsewhere")
    assert fit(*elsewhere, "--model.stage", "renamed", "--ckpt_path", checkpoint, "--resume_mode", "full")[0] == 0
    assert len(steps(fit.folder.parent / "elsewhere")) == 1


@pytest.mark.slow
def test_a_model_folder_or_a_file_warm_starts(fit):
    assert fit("--trainer.max_steps", 2)[0] == 0
    folder = fit.folder / "checkpoints" / "last" / "transformer"
    for number, path in enumerate((folder, folder / "diffusion_pytorch_model.safetensors")):
        elsewhere = fit.folder.parent / f"from{number}"
        arguments = ["--trainer.default_root_dir", elsewhere, "--trainer.max_steps", 1, "--ckpt_path", path]
        assert fit(*arguments)[0] == 0


def test_nothing_to_train_is_an_error(fit):
    assert fit("--trainer.max_steps", 2)[0] == 0
    status, (message,) = fit("--trainer.max_steps", 2, "--ckpt_path", fit.folder)
    assert status == 2
    assert "Nothing to train" in message
    assert "step 2 of stage 'tiny'" in message
    status, (message,) = fit("--trainer.max_steps", -1, "--ckpt_path", fit.folder)
    assert status == 2
    assert "set trainer.max_steps" in message


def test_training_that_does_not_happen_is_an_error(fit):
    status, (message,) = fit("--trainer.limit_train_batches", 0)
    assert status == 2
    assert "Nothing was trained" in message


def test_an_earlier_run_is_not_overwritten(fit):
    assert fit("--trainer.max_steps", 2)[0] == 0
    status, (message,) = fit()
    assert status == 2
    assert f"resume it with --ckpt_path {fit.folder}" in message
    assert len(steps(fit.folder)) == 2


def test_a_resume_says_what_has_changed_of_the_data(fit, tiny_yaml, caplog):
    caplog.set_level(logging.INFO)
    assert fit("--trainer.max_steps", 1)[0] == 0
    assert fit("--ckpt_path", fit.folder, "--trainer.max_steps", 2)[0] == 0
    assert "since the checkpoint" not in caplog.text
    manifest = Path(yaml.safe_load(tiny_yaml.read_text())["data"]["init_args"]["manifest"])
    shorter = manifest.with_name("shorter.jsonl")
    shorter.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    changed = [
        "--data.init_args.manifest",
        shorter,
        "--data.init_args.batch_size",
        1,
        "--data.init_args.num_workers",
        1,
    ]
    assert fit("--ckpt_path", fit.folder, "--trainer.max_steps", 3, *changed)[0] == 0
    told = "the training data (5 rows, then 4), the batch size (2, then 1), the loader workers (0, then 1)."
    assert f"Changed since the checkpoint: {told}" in caplog.text


def test_a_configuration_that_is_not_utf8_is_one_sentence(fit, tiny_yaml):
    tiny_yaml.write_bytes(tiny_yaml.read_bytes() + "# café\n".encode("latin-1"))
    status, (message,) = fit()
    assert status == 2
    assert f"{tiny_yaml} is not UTF-8 (byte 0xe9 in line" in message


def test_its_own_empty_folder_is_a_beginning_and_then_resumed(fit, tiny_yaml, caplog):
    caplog.set_level(logging.INFO)
    begin = ("--ckpt_path", fit.folder / ".." / "run", "--trainer.max_steps", 2)
    for mode in ("full", "weights"):
        status, (message,) = fit(*begin, "--resume_mode", mode)
        assert status == 2
        assert "does not exist" in message
    # What a run that was killed before its first checkpoint leaves.
    fit.folder.mkdir()
    (fit.folder / "steps.jsonl").touch()
    assert fit(*begin)[0] == 0
    assert "is the run's own folder and holds no checkpoint yet: it begins anew." in caplog.text
    assert fit("--ckpt_path", fit.folder)[0] == 0
    assert "resumes at step 2" in caplog.text
    assert [line["step"] for line in steps(fit.folder)] == [0, 1, 2, 3]
    status, (message,) = fit("--ckpt_path", fit.folder.parent)
    assert status == 2
    assert "holds no checkpoint" in message


def test_one_command_line_begins_from_another_runs_weights_and_resumes(fit, caplog):
    caplog.set_level(logging.INFO)
    assert fit("--trainer.max_steps", 2)[0] == 0
    other = fit.folder.parent / "other"
    words = ["--trainer.default_root_dir", other, "--ckpt_path", other, "--model.start.pretrained", fit.folder]
    words += ["--model.stage", "next", "--model.optimizer.init_args.lr", 0.0]
    assert fit(*words, "--trainer.max_steps", 2)[0] == 0
    assert f"starts from the weights in {fit.folder}" in caplog.text
    assert fit(*words)[0] == 0
    assert "Stage 'next' resumes at step 2" in caplog.text
    weights = [load_file(r / "checkpoints" / "last" / "transformer" / "diffusion_pytorch_model.safetensors")
               for r in (fit.folder, other)]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_validate_tells_the_losses(fit, capsys):
    assert fit()[0] == 0
    status = main(["validate", "-c", str(fit.folder / "config.yaml"), "--ckpt_path", str(fit.folder)])
    assert status == 0
    assert len(os.listdir(fit.folder / "tensorboard")) == 2  # the run's own events and settings
    assert "val/loss_sigma_0.5" in capsys.readouterr().out
    status, (message,) = fit(command="validate")
    assert status == 2
    assert "--ckpt_path" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ckpt_path", "nowhere"], "The checkpoint nowhere does not exist"),
        (["--resume_mode", "full"], "needs a checkpoint"),
        (["--trainer.max_stepps", "3"], "did you mean 'trainer.max_steps'?"),
        (["--model.objective.init_args.edit_weigth", "3"], "did you mean 'edit_weight'?"),
        (["--model.transformer.init_args.num_layer", "3"], "did you mean 'num_layers'?"),
        (["--data.init_args.batchsize", "3"], "did you mean 'batch_size'?"),
        (["--data.init_args.manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model.objective.init_args.density.kind", "normal"], "density.kind"),
        (
            ["--model.objective.init_args.density.uniform_share", "2"],
            "uniform_share of the timestep density must be in",
        ),
        (["--model.objective.init_args.density.shift_tokens", "0"], "shift_tokens of the timestep density must be at"),
        (["--model.sampling.shift_tokens", "0"], "sampling.shift_tokens must be at least 1"),
        (["--model.objective.init_args.instruction_dropout", "2"], "instruction_dropout must be in [0, 1]"),
        (["--model.frozen.codec", "icve.models.weightless.dct.DCTCode"], "DCTCode"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
        (["sft.yaml"], "a configuration is given with -c"),
        (["--modell.stage", "x"], "did you mean 'model.stage'?"),
        (["--trainer.devices", "-7"], "should be an int > 0"),
    ],
)
def test_mistakes_are_one_sentence(fit, arguments, told):
    status, lines = fit(*arguments)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("icve: error: ")
    assert told in lines[0]
    assert not (fit.folder / "checkpoints").exists()


def test_divergence_fails_with_a_sentence(fit):
    status, (message,) = fit("--model.optimizer.init_args.lr", "1e30", "--trainer.max_steps", 20)
    assert status == 1
    assert "5 steps in a row were not finite" in message
