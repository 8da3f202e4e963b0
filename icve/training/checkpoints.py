"""When checkpoints are written and which are kept."""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from icve.training.checkpoint_io import LAST, point_last_to, remove_folder, saved_checkpoints

BEST = "best"


class Checkpoints(Checkpoint):
    """Writes RUN/checkpoints/step-NNNNNN every so many steps and at the end; `last` links to the newest.

    RUN is the trainer's `default_root_dir`.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep_last: how many of the newest stay on disk; 0 keeps all.
        monitor: a logged validation figure, smaller is better ("val/loss"): the best of the checkpoints that were
            validated is kept too, and `best` links to it. For this, validate at steps that write a checkpoint.
        asynchronous: write while training goes on, from a copy of the training state in main memory: every process
            needs room there for its part of it. A checkpoint that could not be written ends the run at the next one.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        keep_last: int = 2,
        monitor: str | None = None,
        asynchronous: bool = False,
    ) -> None:
        if every_n_steps < 1 or keep_last < 0:
            raise ValueError("Checkpoints needs every_n_steps >= 1 and keep_last >= 0.")
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.asynchronous = asynchronous
        self.newest: Path | None = None
        self.best_score = math.inf
        self._saved_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if stage == "fit" and trainer.is_global_zero:
            # Left behind by a killed run.
            for stale in self.folder.glob(".*.tmp"):
                stale.unlink() if stale.is_symlink() else shutil.rmtree(stale)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        kept = saved_checkpoints(self.folder)
        self.newest = kept[-1] if kept else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Here rather than at the end of training for the last step too: Lightning's counters are then mid-epoch, and
        # the stage can be continued with more steps.
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and not pl_module.step_skipped  # none while training diverges
        if step != self._saved_step and (due or step == trainer.max_steps):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer)
        trainer.strategy.checkpoint_io.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.asynchronous:
            trainer.strategy.checkpoint_io.run_failed()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = trainer.callback_metrics
        # The first process's, for all to decide alike.
        score = trainer.strategy.broadcast(float(figures[self.monitor]) if self.monitor in figures else None)
        if score is None:
            known = ", ".join(sorted(figures))
            raise ValueError(f"Checkpoints cannot monitor {self.monitor!r}: it is not among the figures {known}.")
        if self._saved_step == trainer.global_step and self.newest is not None and score < self.best_score:
            trainer.strategy.checkpoint_io.finish()
            self.best_score = score
            if trainer.is_global_zero:
                point_last_to(self.newest, BEST)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the current step, point `last` to it and remove those that are not kept."""
        trainer.strategy.checkpoint_io.finish()  # all learn whether the last one was written
        path = self.folder / f"step-{trainer.global_step:06d}"
        self._saved_step = trainer.global_step
        self.newest = path
        written = partial(self._written, path)
        trainer.save_checkpoint(path, weights_only=False, storage_options=written if self.asynchronous else None)
        if trainer.is_global_zero and not self.asynchronous:
            written()
        trainer.strategy.barrier("checkpoint")

    def _written(self, path: Path) -> None:
        point_last_to(path)
        self._prune()

    def _prune(self) -> None:
        if self.keep_last == 0:
            return
        needed = {(self.folder / name).resolve() for name in (LAST, BEST)}
        for old in saved_checkpoints(self.folder)[: -self.keep_last]:
            if old.resolve() not in needed:
                remove_folder(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
