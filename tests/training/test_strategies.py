"""Training in several processes equals training in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from icve.training.strategies import DDPUlyssesStrategy, FSDPUlyssesStrategy
from tests.training.conftest import tiny_transformer

ULYSSES = "icve.training.strategies.DDPUlyssesStrategy"


def fit(config: Path, run: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "icve", "fit", "-c", str(config), f"--trainer.default_root_dir={run}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


def shared(processes: int, size: int) -> list[str]:
    return [
        f"--trainer.devices={processes}",
        f"--trainer.strategy={ULYSSES}",
        f"--trainer.strategy.init_args.sequence_parallel_size={size}",
        "--trainer.strategy.init_args.process_group_backend=gloo",
    ]


def steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_two_processes_that_share_tokens_train_as_one(tiny_yaml, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(tiny_yaml, whole).returncode == 0
    # Stopped in the middle and resumed, as a job that is killed; then each has samples of its own.
    done = fit(tiny_yaml, parts, *shared(2, 2), "--trainer.max_steps=2")
    assert done.returncode == 0, done.stderr[-2000:]
    done = fit(tiny_yaml, parts, *shared(2, 1), f"--ckpt_path={parts}")
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = steps(whole), steps(parts)
    assert [line["ids"] for line in one] == [line["ids"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_what_does_not_fit_is_said_at_once(tiny_yaml, tmp_path):
    done = fit(tiny_yaml, tmp_path / "run", *shared(3, 2))
    assert done.returncode != 0
    assert "3 processes cannot be grouped by 2" in done.stderr
    done = fit(tiny_yaml, tmp_path / "run", *shared(3, 3))
    assert done.returncode != 0
    assert "2 attention heads cannot be shared by 3 processes" in done.stderr


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("FSDPUlyssesStrategy", [], "MuonAdamW updates whole matrices, and FSDPUlyssesStrategy gives every process"),
        ("DeepSpeedUlyssesStrategy", ["--model.optimizer=torch.optim.Adagrad"], "DeepSpeed replaces Adagrad by one"),
        (
            "DDPUlyssesStrategy",
            ["--model.lora.dropout=0.1", "--model.pretrained=WEIGHTS"],
            "drop out different parts of its text: set model.lora.dropout to 0",
        ),
    ],
)
def test_what_cannot_be_shared_is_said_at_once(tiny_yaml, tmp_path, strategy, options, message):
    tiny_transformer().save_pretrained(tmp_path / "weights")
    options = [option.replace("WEIGHTS", str(tmp_path / "weights")) for option in options]
    chosen = [option.replace(ULYSSES, f"icve.training.strategies.{strategy}") for option in shared(2, 2)]
    done = fit(tiny_yaml, tmp_path / "run", *chosen, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("what", "place"), [(TrainerFn.FITTING, "cpu"), (TrainerFn.VALIDATING, "meta")])
def test_fsdp_places_a_model_that_it_does_not_shard(make_module, make_trainer, what, place):
    module, trainer = make_module(), make_trainer(1)
    strategy = FSDPUlyssesStrategy(parallel_devices=[torch.device("meta")])
    trainer.state.fn, module.trainer = what, trainer
    strategy.connect(module)
    strategy.model_to_device()
    assert {parameter.device.type for parameter in module.parameters()} == {place}


def test_the_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        DDPUlyssesStrategy(sequence_parallel_size=0)
