"""A non-finite loss or gradient never reaches the weights."""

import logging
import math
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from icve.runtime.together import sum_of_all
from icve.runtime.transfers import to_device
from icve.training.distributed.sharded import ShardedState, local
from icve.training.lightning_types import parts_of, reports

log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Several steps in a row had a non-finite loss or gradient; the message names the last good checkpoint."""


@runtime_checkable
class Voter(Protocol):
    """A callback that brings numbers to what processes agree on in a step, and is told their sums over them."""

    def votes(self) -> list[float]: ...

    def voted(self, sums: list[float]) -> None: ...


class SkipNonFinite(Callback):
    """Skips steps whose loss or gradient is not finite, and stops the run after several in a row.

    A skipped step keeps its number, so that the data and the random draws of the following ones stay what they would
    have been; weights, optimizer state and EMA are untouched: callbacks with a method `on_step_skipped(trainer,
    pl_module)` are told of it before the batch ends. Also logs the gradient norm before clipping, and shows the step's
    loss on the progress bar.

    All that processes have to agree on in a step goes through one small reduction, and the host waits for the device
    there and nowhere else: whether all is finite, the loss, and what callbacks that are a `Voter` bring.

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
        self._loss: torch.Tensor | None = None  # of the current step, summed over its micro-batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(trainer.strategy, "after_step"):  # an engine looks itself, in its step
            trainer.strategy.after_step = partial(self._engine_stepped, trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if hasattr(trainer.strategy, "after_step"):
            return
        gradients = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=pl_module.device)
        # Where every process has a part of the gradient, and not all of it, its share in the whole's squared norm.
        parts = isinstance(trainer.strategy, ShardedState)
        finite, figure = self._agree(trainer, pl_module, norm, norm.square() if parts else norm)
        if not finite:
            # Every torch optimizer passes over parameters without a gradient, and over their state.
            optimizer.zero_grad(set_to_none=True)
        copies = getattr(trainer.strategy, "replicas", 1)
        norm_of_all = math.sqrt(figure * trainer.world_size / copies) if parts else figure
        self._decided(trainer, pl_module, finite, norm_of_all)

    def _engine_stepped(self, trainer: Trainer, pl_module: LightningModule, finite: bool, norm: torch.Tensor) -> None:
        _, figure = self._agree(trainer, pl_module, norm, norm)
        self._decided(trainer, pl_module, finite, figure)

    def _agree(
        self, trainer: Trainer, pl_module: LightningModule, norm: torch.Tensor, figure: torch.Tensor
    ) -> tuple[bool, float]:
        """Whether loss and norm () are finite on all processes, and the processes' mean of a figure ()."""
        loss, self._loss = self._loss, None
        if loss is None:  # of a step without any micro-batch
            loss = torch.zeros((), device=pl_module.device)
        voting = [(one, one.votes()) for one in parts_of(trainer).callbacks if isinstance(one, Voter)]
        votes = to_device(torch.tensor([vote for _, own in voting for vote in own], dtype=torch.float32), loss.device)
        bad = (norm.to(loss.device) + loss).isfinite().logical_not()
        values = torch.stack([bad.float(), loss.float(), figure.to(loss.device).float()])
        unfit, total, figures, *sums = sum_of_all(torch.cat([values, votes]))
        for one, own in voting:
            one.voted([sums.pop(0) for _ in own])
        trainer.progress_bar_metrics["train/loss"] = total / trainer.world_size
        return not unfit, figures / trainer.world_size

    def _decided(self, trainer: Trainer, pl_module: LightningModule, finite: bool, norm: float) -> None:
        """Take note of a step that was made or, if not `finite`, skipped by all processes; the norm of its gradient."""
        logs = reports(trainer, trainer.global_step + 1)
        if finite:
            self.in_a_row = 0
            if logs:
                pl_module.log("train/gradient_norm", torch.tensor(norm))
        else:
            self.skipped += 1
            self.in_a_row += 1
            for callback in parts_of(trainer).callbacks:
                if hasattr(callback, "on_step_skipped"):
                    callback.on_step_skipped(trainer, pl_module)
            counts = f"({self.skipped} skipped so far, {self.in_a_row} in a row)"
            if trainer.is_global_zero:
                log.warning("Step %d has a non-finite loss or gradient and is skipped %s.", trainer.global_step, counts)
        if logs:
            pl_module.log("train/skipped_steps", torch.tensor(float(self.skipped)))
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
