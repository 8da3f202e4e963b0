"""A non-finite loss or gradient never reaches the weights."""

import logging
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from icve.training.lightning_types import parts_of

log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Several steps in a row had a non-finite loss or gradient; the message names the last good checkpoint."""


class SkipNonFinite(Callback):
    """Skips steps whose loss or gradient is not finite, and stops the run after several in a row.

    A skipped step keeps its number, so that the data and the random draws of the following ones stay what they would
    have been; weights, optimizer state and EMA are untouched: callbacks with a method `on_step_skipped(trainer,
    pl_module)` are told of it before the batch ends. Also logs the gradient norm before clipping.

    Args:
        patience: consecutive skipped steps that stop the run.

    Raises:
        TrainingDiverged: when the patience is exhausted.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}.")
        self.patience = patience
        self.skipped = 0
        self.in_a_row = 0
        self._loss = torch.zeros(())  # of the current step, summed over its micro-batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(trainer.strategy, "after_step"):  # an engine looks itself, in its step
            trainer.strategy.after_step = partial(self.decided, trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._loss = self._loss.to(loss.device) + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        loss, self._loss = self._loss, torch.zeros_like(self._loss)
        if hasattr(trainer.strategy, "after_step"):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(loss)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # One decision for all processes: each has losses of its own.
        finite = trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(norm + loss)), all=True)
        if not finite:
            # Every torch optimizer passes over parameters without a gradient, and over their state.
            optimizer.zero_grad(set_to_none=True)
        self.decided(trainer, pl_module, finite, norm)

    def decided(self, trainer: Trainer, pl_module: LightningModule, finite: bool, norm: torch.Tensor) -> None:
        """Take note of a step that was made or, if not `finite`, skipped by all processes; norm () of its gradient."""
        if finite:
            self.in_a_row = 0
            pl_module.log("train/gradient_norm", norm)
        else:
            self.skipped += 1
            self.in_a_row += 1
            for callback in parts_of(trainer).callbacks:
                if hasattr(callback, "on_step_skipped"):
                    callback.on_step_skipped(trainer, pl_module)
            counts = f"({self.skipped} skipped so far, {self.in_a_row} in a row)"
            if trainer.is_global_zero:
                log.warning("Step %d has a non-finite loss or gradient and is skipped %s.", trainer.global_step, counts)
        pl_module.log("train/skipped_steps", float(self.skipped))
        if self.in_a_row >= self.patience:
            raise TrainingDiverged(self._message(trainer))

    def _message(self, trainer: Trainer) -> str:
        kept = [path for one in trainer.checkpoint_callbacks if (path := getattr(one, "newest", None))]
        advice = (
            f"the last good checkpoint is {kept[-1]}: resume from it with a lower learning rate or stronger clipping"
            if kept
            else "no checkpoint was written yet: start again with a lower learning rate, more warm-up or clipping"
        )
        return f"Stopped at step {trainer.global_step}: {self.in_a_row} steps in a row were not finite; {advice}."

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]
