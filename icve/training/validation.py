"""Validation: losses of held-out samples, at the same noise levels and with the same noise in every run."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from icve.runtime.transfers import to_device
from icve.training.objectives.objective import Losses


class HeldOutLoss:
    """Mean losses over the samples of all processes, of which one may have more than another.

    Lightning's own mean is none: it averages the numbers of samples over the processes, and cuts off the fraction.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # of each loss, and last the number of samples
        self.names: list[str] = []

    def add(self, losses: Losses, counted: list[bool] | None = None) -> None:
        """Take in the losses of B samples: those that are ``counted``, all if that is None."""
        self.names = ["val/loss", *(f"val/loss_{name}" for name in losses.parts)]
        values = torch.stack([losses.per_sample, *losses.parts.values(), torch.ones_like(losses.per_sample)])
        if counted is not None:
            values = torch.where(to_device(torch.tensor(counted), values.device), values, 0.0)
        self.sums = values.sum(1) if self.sums is None else self.sums + values.sum(1)

    def figures(self, module: LightningModule) -> dict[str, Tensor]:
        """val/loss and val/loss_NAME, the same on all processes; nothing if no sample was counted."""
        if self.sums is None:  # on every process: all have as many batches
            return {}
        # Processes that share their samples' tokens count each of them equally often.
        *sums, samples = torch.as_tensor(module.all_gather(self.sums)).reshape(-1, len(self.sums)).sum(0)
        if not samples:
            return {}
        return dict(zip(self.names, torch.stack(sums) / samples, strict=True))


def validation_figures(trainer: Trainer) -> dict[str, float]:
    """What the last validation logged, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def validate_now(trainer: Trainer) -> None:
    """Validate in the middle of fitting, as at an interval; training goes on as if it had not happened."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # a resumed run would take the validation before its checkpoint for half done
    trainer.validating = True
    with isolate_rng():
        loop.run()
    trainer.training = True
