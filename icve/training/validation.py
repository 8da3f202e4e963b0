"""Validation: losses of held-out samples, at the same noise levels and with the same noise in every run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from icve.runtime.transfers import to_device


class HeldOutLoss:
    """Mean losses over the samples of all processes, of which one may have more than another.

    Lightning's own mean is none: it averages the numbers of samples over the processes, and cuts off the fraction.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # of each loss, and last the number of samples
        self.names: list[str] = []

    def add(self, losses: Mapping[str, Tensor], counted: list[bool] | None = None) -> None:
        """Take in losses (B,) by name of B samples: those that are ``counted``, all if that is None."""
        self.names = list(losses)
        values = torch.stack([*losses.values(), torch.ones_like(next(iter(losses.values())))])
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
        means = torch.stack(sums) / samples
        named = {f"val/loss_{name}": mean for name, mean in zip(self.names, means, strict=True)}
        return {**named, "val/loss": means.mean()}


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
