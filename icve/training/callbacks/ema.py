"""Exponential moving average of the transformer's weights: what validation, previews and the saved model use."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from icve.training.checkpoints.state_files import AVERAGE_KEY
from icve.training.distributed.sharded import ShardedState
from icve.training.lightning_types import editing


class EMA(Callback):
    """Float32 shadow of `module.transformer`'s trained parameters, moved towards them after every optimizer step.

    Args:
        decay: share of the shadow that remains per step, in [0, 1).
        warmup: start with the shorter memory min(decay, (1 + t) / (10 + t)) after t updates, so that a short run's
            average is not dominated by its initial weights.

    Processes that share the weights (ZeRO, FSDP2) share the shadow in the same way.

    A step that was skipped (see `SkipNonFinite`) leaves the shadow alone. The state is saved and resumed exactly.
    """

    state_key = AVERAGE_KEY

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"The EMA decay must be in [0, 1), got {decay}.")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}
        self._live: list[Tensor] | None = None
        self._last_step = 0
        self._skipped_step: int | None = None  # the last that changed nothing
        self._shared: ShardedState | None = None  # the strategy, where processes share the weights
        self._pending = False  # a run has begun, and its weights may still be read from a checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shared = trainer.strategy if isinstance(trainer.strategy, ShardedState) else None
        self._pending = True

    def _prepare(self, pl_module: LightningModule) -> None:
        """Start from the weights as they are, or take the checkpoint's shadow; once, before either is used."""
        if not self._pending:
            return
        self._pending = False
        parameters = self._weights(pl_module)
        if not self.shadow:
            self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}
        if self.shadow.keys() != parameters.keys():
            raise ValueError(
                "The EMA weights of the checkpoint belong to another transformer than the configuration's."
            )
        self.shadow = {name: self.shadow[name].to(p.device) for name, p in parameters.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(pl_module)
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # With gradient accumulation only some batches end a step.
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if trainer.global_step != self._skipped_step:
            self.update(pl_module)

    def on_step_skipped(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._skipped_step = trainer.global_step + 1

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Move the shadow towards the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        weights = [p.detach().float() for p in self._weights(pl_module).values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)
        self.updates += 1

    def swap_in(self, pl_module: LightningModule) -> None:
        """Put the averaged weights into the transformer and the live ones aside; without a shadow, do nothing."""
        self._prepare(pl_module)
        if not self.shadow or self._live is not None:
            return
        parameters = [p.data for p in self._weights(pl_module).values()]
        self._live = [p.clone() for p in parameters]
        self._put(parameters, list(self.shadow.values()))

    def swap_out(self, pl_module: LightningModule) -> None:
        """Put the live weights back, bit for bit."""
        if self._live is not None:
            self._put([p.data for p in self._weights(pl_module).values()], self._live)
            self._live = None

    def _put(self, parameters: list[Tensor], values: list[Tensor]) -> None:
        torch._foreach_copy_(parameters, values)
        if self._shared is not None:
            self._shared.weights_changed()

    def _weights(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """The transformer's parameters that learn, all or an adapter's; of shared ones what this process updates."""
        if self._shared is not None:
            return {part.name: part.weights for part in self._shared.owned()}
        return {name: p for name, p in editing(pl_module).transformer.named_parameters() if p.requires_grad}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Of shared weights nothing is put back: it takes all processes, and others may be past hearing.
        if self._shared is None:
            self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.shadow = dict(state_dict["shadow"])
