"""What Lightning's own types do not say: of its trainer, and of the module that callbacks and strategies are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers.models.modeling_utils import ModelMixin
    from torch import Tensor

    from icve.data.edit_batch import EditBatch
    from icve.data.latent_grid import LatentGrid
    from icve.data.text_condition import TextCondition
    from icve.editing.pipeline import EditPipeline
    from icve.models.denoiser import InContextTransformer
    from icve.models.lora import LoRA
    from icve.training.objectives.objective import Objective
    from icve.training.randomness import Draws


class EditingModule(LightningModule):
    """What others may use of :class:`icve.training.module.InContextEditingModule`, which uses some of them."""

    transformer: InContextTransformer  # or what is used like it
    objective: Objective
    lora: LoRA | None
    stage: str
    samples: int

    @property
    def text_encoder(self) -> ModelMixin:
        raise NotImplementedError

    @property
    def grid(self) -> LatentGrid:
        raise NotImplementedError

    def pipeline(self) -> EditPipeline:
        raise NotImplementedError

    def encode_videos(self, *videos: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def encode_own_videos(self, *videos: Tensor) -> Callable[[], list[Tensor]]:
        raise NotImplementedError

    def encode_own_texts(self, batch: EditBatch, instructions: Sequence[str]) -> Callable[[], TextCondition]:
        raise NotImplementedError

    def coming_draws(self, samples: int, of: int | None, step: int) -> Draws:
        raise NotImplementedError


class TrainerParts(Protocol):
    """What Lightning's connectors set on every trainer."""

    callbacks: list[Callback]
    datamodule: LightningDataModule | None
    log_every_n_steps: int
    profiler: Profiler


def editing(module: LightningModule | None) -> EditingModule:
    """The module of a running trainer, by its type."""
    return cast(EditingModule, module)


def parts_of(trainer: Trainer) -> TrainerParts:
    """A trainer, by what its type hides."""
    return cast(TrainerParts, trainer)


def reports(trainer: Trainer, step: int) -> bool:
    """Whether figures are logged when that many steps are done."""
    return step % parts_of(trainer).log_every_n_steps == 0
