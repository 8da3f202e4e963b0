"""Validation: losses of held-out samples, at the same noise levels and with the same noise in every run."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

VALIDATION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class HeldOutLoss:
    """Mean loss over the samples of all processes, of which one may have more than another.

    Lightning's own mean is none: it averages the numbers of samples over the processes, and cuts off the fraction.

    Args:
        device: the processes' sums are exchanged on.
    """

    def __init__(self, device: torch.device) -> None:
        # Per noise level the sum of the losses, and last the number of samples.
        self.sums = torch.zeros(len(VALIDATION_SIGMAS) + 1, device=device)

    def add(self, losses: Tensor, counted: list[bool] | None = None) -> None:
        """Take in losses (levels, B) of B samples: those that are ``counted``, all if that is None."""
        values = torch.cat([losses, torch.ones_like(losses[:1])])
        if counted is not None:
            values = torch.where(torch.tensor(counted, device=values.device), values, 0.0)
        self.sums += values.sum(1)

    def figures(self, module: LightningModule) -> dict[str, Tensor]:
        """val/loss and val/loss_sigma_LEVEL, the same on all processes; nothing if no sample was counted."""
        # Processes that share their samples' tokens count each of them equally often.
        *sums, samples = torch.as_tensor(module.all_gather(self.sums)).reshape(-1, len(self.sums)).sum(0)
        if not samples:
            return {}
        means = torch.stack(sums) / samples
        levels = {f"val/loss_sigma_{level}": mean for level, mean in zip(VALIDATION_SIGMAS, means, strict=True)}
        return {**levels, "val/loss": means.mean()}


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
