"""A run that is told to stop ends between two steps, with a checkpoint."""

import os
import signal

import pytest

from icve.training.checkpoint_io import read_stage
from icve.training.checkpoints import Checkpoints
from icve.training.stop_signal import StopOnSignal


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal")
def test_the_step_in_progress_is_finished_and_saved(make_module, make_trainer, make_data, make_losses, tmp_path):
    losses = make_losses()

    def tell(*args):  # in the middle of step 2
        if len(losses.lines) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    module, whole = make_module(), make_losses()
    module.on_train_batch_start = tell
    before = signal.getsignal(signal.SIGUSR1)
    callbacks = [losses, Checkpoints(every_n_steps=100), StopOnSignal()]
    trainer = make_trainer(50, callbacks, tmp_path / "stopped", accumulate_grad_batches=3)
    trainer.fit(module, datamodule=make_data())

    assert trainer.global_step == 2
    last = tmp_path / "stopped" / "checkpoints" / "last"
    assert read_stage(last)["step"] == 2
    assert signal.getsignal(signal.SIGUSR1) == before
    # Resumed, it goes on as if nothing had happened.
    make_trainer(3, [whole], tmp_path / "whole", accumulate_grad_batches=3).fit(make_module(), datamodule=make_data())
    again = make_trainer(3, [losses, StopOnSignal()], tmp_path / "stopped", accumulate_grad_batches=3)
    again.fit(make_module(), datamodule=make_data(), ckpt_path=last)
    assert losses.lines == whole.lines
