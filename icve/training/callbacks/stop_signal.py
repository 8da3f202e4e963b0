"""A run that is told to stop writes a checkpoint first."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from icve.runtime.together import gather, sum_of_all

SIGNAL = "SIGUSR1"
# Sent by what ends a job (Slurm, a container's host, `kill`), and by Ctrl-C.
ENDS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 3.0  # seconds after which one of these is a second one: a launcher may pass on what reached all of a group


class Listening:
    """Remembers which signal to stop came to this process while it is entered, in place of what the signal does else.

    Of those that listen at the same time, as a stage does and the curriculum it belongs to, all remember, also what
    came before they were entered. The second time, SIGTERM and Ctrl-C do what they do else. In another thread than the
    main one nothing is heard.

    Args:
        *names: of signals that are listened to besides SIGTERM and SIGINT.
    """

    _entered: ClassVar[list[Listening]] = []

    def __init__(self, *names: str) -> None:
        own = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has not all of them
        self.numbers = (*own, *ENDS)
        self.heard = 0  # number of the signal
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Listening:
        # In this order nothing is missed that comes meanwhile.
        self._entered.append(self)
        for other in self._entered:
            if other.heard in self.numbers:
                self.heard, self._since = other.heard, other._since
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.numbers}
        return self

    def __exit__(self, *args: object) -> None:
        if self in self._entered:
            self._entered.remove(self)
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:  # else Lightning has put back what it found, before this
                signal.signal(number, before)
        self._before = {}

    def _handle(self, number: int, *args: Any) -> None:
        now = time.monotonic()
        hearing = [listening for listening in self._entered if number in listening.numbers]
        if number in ENDS and any(one.heard and now - one._since > AGAIN for one in hearing):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        new = [listening for listening in hearing if not listening.heard]
        for listening in new:
            listening.heard, listening._since = number, now
        if new and number in ENDS and os.environ.get("LOCAL_RANK", "0") == "0":
            # Not by print, which may have been interrupted by this very signal.
            os.write(2, b"\nicve: told to stop: a checkpoint follows the step in progress; once more ends at once.\n")


class StopOnSignal(Callback):
    """A signal to any process of the run ends it, with a checkpoint, when the optimizer step in progress is done.

    For what announces itself: a time limit, a node that is needed for something else (`#SBATCH --signal=USR1@600`), or
    a person. After SIGUSR1 the run ends with exit status 0; after SIGTERM and Ctrl-C, which others take for an end
    before its time, with 143 and 130. It is resumed like any other.

    Args:
        name: of the signal that ends it with status 0.
    """

    def __init__(self, name: str = SIGNAL) -> None:
        self.listening = Listening(name)
        self._step = 0
        self._told: bool | None = None  # whether any process was, once they have agreed on it in this step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._told = trainer.global_step, None
        self.listening.__enter__()
        # Before every micro-batch Lightning's first process tells the others of a SIGTERM, which now comes here.
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of a step, which a checkpoint is not for
        self._step = trainer.global_step
        if self._told is None:  # nothing else that the processes had to agree on took the votes along
            self.voted(sum_of_all(torch.tensor(self.votes(), device=trainer.strategy.root_device)))
        told, self._told = self._told, None
        if told:
            rank_zero_info(f"Told to stop: the run ends at step {trainer.global_step}, with a checkpoint.")
            trainer.should_stop = True

    def votes(self) -> list[float]:
        """Of every signal, whether this process heard it; see `SkipNonFinite`."""
        return [float(number == self.listening.heard) for number in self.listening.numbers]

    def voted(self, sums: list[float]) -> None:
        """Take note of how many processes heard which."""
        heard = [number for number, processes in zip(self.listening.numbers, sums, strict=True) if processes]
        self._told = bool(heard)
        if heard:
            self.listening.heard = max(heard)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.listening.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.listening.__exit__()


def agreed(heard: int) -> int:
    """The signal that any process of the run heard, on all of them alike; 0 for none."""
    return max(gather(heard))


def status(heard: int) -> int:
    """Exit status of a run that ends because of a signal, or of none."""
    return 128 + heard if heard in ENDS else 0
