"""A run killed with SIGKILL and resumed equals the uninterrupted one, bit for bit (invariant 3 of the design)."""

import os
import signal

import pytest

from tests.training.runs import finish, steps, until_steps

STEPS, TIME_LIMIT = 60, 120
OPTIONS = ["--trainer.max_steps", str(STEPS), "--trainer.accumulate_grad_batches", "2"]
OPTIONS += ["--trainer.val_check_interval", "14", "--trainer.precision", "bf16-mixed"]


def kill_after(process, run, micro_batches):
    until_steps(process, run, micro_batches, TIME_LIMIT)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == -signal.SIGKILL
    return len(steps(run))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(5 * TIME_LIMIT)
def test_killed_and_resumed_equals_uninterrupted(started, tiny_yaml, tmp_path):
    whole = tmp_path / "whole"
    finish(started(tiny_yaml, whole, *OPTIONS), TIME_LIMIT)
    truth = steps(whole)
    assert len(truth) == 2 * STEPS

    text, meanwhile = tiny_yaml.read_text(), tmp_path / "meanwhile.yaml"
    meanwhile.write_text(text.replace("keep_last: 0", "keep_last: 0, asynchronous: true, export_every: 4"))
    for workers, config in ((0, tiny_yaml), (2, meanwhile)):
        run = tmp_path / f"killed-{workers}"
        data = ["--data.init_args.num_workers", workers]
        done = kill_after(started(config, run, *data, *OPTIONS), run, micro_batches=40)
        assert done < 2 * STEPS
        assert any(name.startswith("step-") for name in os.listdir(run / "checkpoints"))
        finish(started(config, run, *data, "--ckpt_path", run, *OPTIONS), TIME_LIMIT)
        assert steps(run) == truth
        finals = [folder / "checkpoints" / "last" / "transformer" for folder in (whole, run)]
        contents = [(final / "diffusion_pytorch_model.safetensors").read_bytes() for final in finals]
        assert contents[0] == contents[1]
