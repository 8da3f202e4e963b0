"""A run killed with SIGKILL and resumed equals the uninterrupted one, bit for bit (invariant 3 of the design)."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

STEPS, TIME_LIMIT = 60, 120
OPTIONS = ["--trainer.max_steps", str(STEPS), "--trainer.accumulate_grad_batches", "2"]
OPTIONS += ["--trainer.val_check_interval", "14", "--trainer.precision", "bf16-mixed"]


def start(yaml, run, *arguments):
    """`python -m icve fit` as its own process, on one thread: the order of sums must not depend on the machine."""
    command = [sys.executable, "-m", "icve", "fit", "-c", yaml, "--trainer.default_root_dir", run, *OPTIONS, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, errors.decode()


def steps(run):
    file = run / "steps.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def kill_after(process, run, micro_batches):
    deadline = time.monotonic() + TIME_LIMIT
    while len(steps(run)) < micro_batches:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == -signal.SIGKILL
    return len(steps(run))


@pytest.fixture
def started(watched):
    """`start`, with nothing left running when the test fails."""
    return lambda *arguments: watched(start(*arguments))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(5 * TIME_LIMIT)
def test_killed_and_resumed_equals_uninterrupted(started, tiny_yaml, tmp_path):
    whole = tmp_path / "whole"
    finish(started(tiny_yaml, whole))
    truth = steps(whole)
    assert len(truth) == 2 * STEPS

    for workers in (0, 2):
        run = tmp_path / f"killed-{workers}"
        data = ["--data.init_args.num_workers", workers]
        done = kill_after(started(tiny_yaml, run, *data), run, micro_batches=40)
        assert done < 2 * STEPS
        assert any(name.startswith("step-") for name in os.listdir(run / "checkpoints"))
        finish(started(tiny_yaml, run, *data, "--ckpt_path", run))
        assert steps(run) == truth
        finals = [folder / "checkpoints" / "last" / "transformer" for folder in (whole, run)]
        contents = [(final / "diffusion_pytorch_model.safetensors").read_bytes() for final in finals]
        assert contents[0] == contents[1]
