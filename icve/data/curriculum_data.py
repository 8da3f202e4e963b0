"""The data of a curriculum: one data module per stage, and the model's stage says whose batches are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningDataModule, Trainer

if TYPE_CHECKING:
    from icve.data.pairs import PairsDataModule


class CurriculumDataModule(LightningDataModule):
    """Batches of the stage that is being trained, from that stage's own data module: buckets, batch size and all.

    Batch n of a stage is what its data module alone would give as batch n: the stages know nothing of each other.

    Args:
        stages: data module of each stage, by the stage's name (``model.stage``).

    Raises:
        ValueError: no stages, or the model's stage is none of them (raised when the data is asked for).
    """

    trainer: Trainer

    def __init__(self, stages: dict[str, LightningDataModule]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("CurriculumDataModule needs the data module of at least one stage.")
        self.stages = stages

    @property
    def current(self) -> PairsDataModule:
        """Data module of the stage that the trainer's module is in."""
        stage = str(self.trainer.lightning_module.stage)
        if stage not in self.stages:
            raise ValueError(
                f"The data module has no stage '{stage}', only {', '.join(self.stages)}: set --model.stage to one."
            )
        data = cast("PairsDataModule", self.stages[stage])  # or one that is used like it
        data.trainer = self.trainer
        return data

    def prepare_data(self) -> None:
        self.current.prepare_data()

    def setup(self, stage: str) -> None:
        self.current.setup(stage)

    def teardown(self, stage: str) -> None:
        self.current.teardown(stage)

    def train_dataloader(self) -> Any:
        """Endless loader of the current stage, see :class:`icve.data.pairs.PairsDataModule`."""
        return self.current.train_dataloader()

    def val_dataloader(self) -> Any:
        """Held-out samples of the current stage; an empty list where it has none."""
        return self.current.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the current stage's data."""
        return self.current.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give a checkpoint's state to the current stage, whose it is."""
        self.current.load_state_dict(state_dict)

    @property
    def references(self) -> bool:
        """Whether the current stage's batches have reference pictures."""
        return bool(getattr(self.current, "references", False))

    @property
    def latent_cache(self) -> Any:
        """The latent cache of the current stage, or None where it decodes videos."""
        return getattr(self.current, "latent_cache", None)
