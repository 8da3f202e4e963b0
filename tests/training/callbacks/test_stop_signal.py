"""A run that is told to stop ends between two steps, with a checkpoint."""

import os
import signal
import sys

import pytest

from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.nonfinite import SkipNonFinite
from icve.training.callbacks.stop_signal import AGAIN, Listening, StopOnSignal
from icve.training.checkpoints.stage_record import read_stage
from tests.training.runs import finish, steps, until_steps


@pytest.mark.parametrize("beside", [[], [SkipNonFinite]])  # which takes its votes along
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal")
def test_the_step_in_progress_is_finished_and_saved(
    make_module, make_trainer, make_data, make_losses, tmp_path, name, beside
):
    losses, number = make_losses(), getattr(signal, name)

    def tell(*args):  # in the middle of step 2
        if len(losses.lines) == 3:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as a launcher does that passes on what reached the whole group

    module, whole = make_module(), make_losses()
    module.on_train_batch_start = tell
    before = signal.getsignal(number)
    callbacks = [losses, Checkpoints(every_n_steps=100), StopOnSignal(), *(kind() for kind in beside)]
    trainer = make_trainer(50, callbacks, tmp_path / "stopped", accumulate_grad_batches=3)
    trainer.fit(module, datamodule=make_data())

    assert trainer.global_step == 2
    last = tmp_path / "stopped" / "checkpoints" / "last"
    assert read_stage(last)["step"] == 2
    assert signal.getsignal(number) == before
    # Resumed, it goes on as if nothing had happened.
    make_trainer(3, [whole], tmp_path / "whole", accumulate_grad_batches=3).fit(make_module(), datamodule=make_data())
    again = make_trainer(3, [losses, StopOnSignal()], tmp_path / "stopped", accumulate_grad_batches=3)
    again.fit(make_module(), datamodule=make_data(), ckpt_path=last)
    assert losses.lines == whole.lines


def test_the_second_time_a_signal_ends_at_once():
    with Listening() as listening:
        signal.raise_signal(signal.SIGINT)
        assert listening.heard == signal.SIGINT
        listening._since -= AGAIN + 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(200)
@pytest.mark.skipif(sys.platform != "linux", reason="kills a group of processes")
def test_a_job_that_is_told_to_end_as_a_whole_saves_first(tiny_yaml, tmp_path, started):
    """As Slurm and containers do it: every process gets the signal, also the loaders' workers."""
    config = tiny_yaml.read_text().replace("icve.training.optimization.optimizers.MuonAdamW", "torch.optim.AdamW")
    tiny_yaml.write_text(config)
    run, options = tmp_path / "run", ["--trainer.max_steps=2000", "--data.init_args.num_workers=2"]
    options += [
        "--trainer.devices=2",
        "--trainer.strategy=DeepSpeedUlyssesStrategy",
        "--trainer.val_check_interval=1000",
    ]
    options += ["--trainer.strategy.init_args.sequence_parallel_size=2"]
    process = started(tiny_yaml, run, *options, start_new_session=True)
    until_steps(process, run, 5, seconds=100)
    os.killpg(process.pid, signal.SIGTERM)
    errors = finish(process, 60, status=128 + signal.SIGTERM)
    assert "Traceback" not in errors
    assert errors.count("told to stop: a checkpoint follows") == 1
    assert read_stage(run / "checkpoints" / "last")["step"] == steps(run)[-1]["step"] + 1
