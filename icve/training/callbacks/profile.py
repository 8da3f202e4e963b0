"""A trace of a few training steps by torch.profiler, one file per process."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from icve.runtime.atomic import whole_file

log = logging.getLogger(__name__)


class Profile(Callback):
    """Records optimizer steps into RUN/profile/step-NNNNNN-rank-N.json.gz, for ui.perfetto.dev or chrome://tracing.

    NNNNNN is the first recorded step of the run. Steps before it run at full speed, but for the last one, in which the
    profiler warms up. Lightning's own PyTorchProfiler would go on recording for the whole of an endless epoch.

    Args:
        start: optimizer steps from the start, or the resumption, of training to the first recorded one; at least 1.
        steps: how many are recorded; a trace of the 13B model grows by tens of megabytes per step.
        stacks: also record the Python line of every operation, which slows the steps down.

    Raises:
        ValueError: start or steps are not positive.
    """

    FOLDER = "profile"

    def __init__(self, start: int = 10, steps: int = 3, stacks: bool = False) -> None:
        if start < 1 or steps < 1:
            raise ValueError(f"A profile needs start >= 1 and steps >= 1, got {start} and {steps}.")
        self.start, self.steps, self.stacks = start, steps, stacks

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """From START:STEPS. Raises ValueError for anything else."""
        if (found := re.fullmatch(r"(\d+):(\d+)", text)) is None:
            raise ValueError(f"--profile takes START:STEPS, as in 10:5 (five steps after the first ten), not {text!r}.")
        return cls(start=int(found[1]), steps=int(found[2]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._first, self._written = trainer.global_step, trainer.global_step + self.start, False
        name = f"step-{self._first:06d}-rank-{trainer.global_rank}.json.gz"
        self._path = Path(trainer.default_root_dir) / self.FOLDER / name
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=self.start - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
            with_stack=self.stacks,
        )
        self._profiler.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._profiler.step()  # it does nothing once it has recorded

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.stop()  # and write what it has recorded, if it has not
        if not self._written:
            log.warning("No profile was written: training ended before its step %d.", self._first)

    def _write(self, profiler: profile) -> None:
        with whole_file(self._path) as temporary:
            # Compressed if the name says so.
            named = temporary.with_name(temporary.name + ".gz")
            profiler.export_chrome_trace(str(named))
            named.replace(temporary)
        self._written = True
        log.info("Wrote the profile %s.", self._path)
