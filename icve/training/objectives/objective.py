"""What is trained for: the contract between the training module and an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from icve.data.edit_batch import EditBatch
from icve.editing.pipeline import EditPipeline
from icve.flow import Prediction
from icve.models.denoiser import Denoiser
from icve.training.randomness import Draws


@dataclass(frozen=True)
class Losses:
    """Losses of a batch.

    Attributes:
        per_sample: (B,) float32; their mean is minimised.
        tokens: that the transformer attended to, for the figures of speed.
        parts: (B,) by name, what the losses are made of; logged.
    """

    per_sample: Tensor
    tokens: int = 0
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """Turns batches into losses. One object serves training and validation; its settings are its constructor's.

    Attributes:
        predicts: what the transformer learns to predict, which sampling must know.
        shift_tokens: of the law of the noise level, where it depends on the size: sampling follows it.
    """

    predicts: Prediction = "velocity"
    shift_tokens: int | None = None

    def use(self, frozen: Mapping[str, nn.Module]) -> None:  # noqa: B027 - most objectives need nothing of them
        """Called once, with the frozen parts by name. Raises ValueError where they lack what the objective needs."""

    def instructions(self, batch: EditBatch, draws: Draws) -> list[str]:
        """What every sample's transformer is told: its instruction, unless an objective says otherwise."""
        return batch["instruction"]

    @abstractmethod
    def loss(self, denoiser: Denoiser, batch: EditBatch, draws: Draws) -> Losses:
        """Of a batch with latents (`source`, `target`) and `condition`."""

    @abstractmethod
    def held_out(self, denoiser: Denoiser, batch: EditBatch, draws: Draws) -> Losses:
        """Validation losses: `val/loss` is the mean of `per_sample`, by which stages end and the best weights are
        chosen, and `val/loss_NAME` that of a part, e.g. "sigma_0.5". The draws depend on the samples' ids only.
        """

    def edit(self, pipeline: EditPipeline, source: Tensor, instructions: Sequence[str], **settings: Any) -> Tensor:
        """Edited latents (B, C, T, h, w) of source latents, for previews, as an editor trained for this makes them.

        Args:
            pipeline: the module's own, with its current weights.
            source: (B, C, T, h, w) float32.
            instructions: B of them.
            settings: as `EditPipeline.edit_latents` takes them.
        """
        return pipeline.edit_latents(source, instructions, **settings)
