"""A run that is told to stop writes a checkpoint first."""

import signal
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class StopOnSignal(Callback):
    """A signal to any process of the run ends it, with a checkpoint, when the optimizer step in progress is done.

    For what announces itself: a time limit, a node that is needed for something else (`#SBATCH --signal=USR1@600`), or
    a person. The run ends with exit status 0 and is resumed like any other.

    Args:
        name: of the signal.
    """

    def __init__(self, name: str = "SIGUSR1") -> None:
        self.number = getattr(signal, name, None)  # Windows has not all of them
        self.asked = False
        self._before: Any = None
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self.number is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(self.number, self._ask)

    def _ask(self, *args: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of a step, which a checkpoint is not for
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            rank_zero_info(f"Told to stop: the run ends at step {trainer.global_step}, with a checkpoint.")
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(self.number, self._before)
            self._before = None
