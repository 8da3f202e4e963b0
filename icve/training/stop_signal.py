"""A run that is told to stop writes a checkpoint first."""

from __future__ import annotations

import signal
import threading
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

SIGNAL = "SIGUSR1"


class Listening:
    """Remembers whether a signal came to this process while it is entered, in place of what the signal does else.

    Of those that listen to a signal at the same time, as a stage does and the curriculum it belongs to, all remember,
    also what came before they were entered. In another thread than the main one nothing is heard.

    Args:
        name: of the signal.
    """

    _entered: ClassVar[list[Listening]] = []

    def __init__(self, name: str = SIGNAL) -> None:
        self.number = getattr(signal, name, None)  # Windows has not all of them
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Listening:
        # In this order nothing is missed that comes meanwhile.
        self._entered.append(self)
        self.asked = self.asked or any(other.asked for other in self._entered if other.number == self.number)
        if self.number is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(self.number, self._hear)
        return self

    def __exit__(self, *args: object) -> None:
        if self in self._entered:
            self._entered.remove(self)
        if self._before is not None:
            signal.signal(self.number, self._before)
            self._before = None

    @classmethod
    def _hear(cls, number: int, *args: Any) -> None:
        for listening in cls._entered:
            if listening.number == number:
                listening.asked = True


class StopOnSignal(Callback):
    """A signal to any process of the run ends it, with a checkpoint, when the optimizer step in progress is done.

    For what announces itself: a time limit, a node that is needed for something else (`#SBATCH --signal=USR1@600`), or
    a person. The run ends with exit status 0 and is resumed like any other.

    Args:
        name: of the signal.
    """

    def __init__(self, name: str = SIGNAL) -> None:
        self.listening = Listening(name)
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self.listening.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of a step, which a checkpoint is not for
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self.listening.asked, all=False):
            rank_zero_info(f"Told to stop: the run ends at step {trainer.global_step}, with a checkpoint.")
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.listening.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.listening.__exit__()  # no teardown follows
