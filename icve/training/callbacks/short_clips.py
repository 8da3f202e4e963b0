"""Short clips first: most of what instructions mean can be learned from a frame or two, at a fraction of the cost."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from icve.data.latent_grid import LatentGrid
from icve.training.lightning_types import editing


class ShortClips(Callback):
    """Trains on the beginning of every clip for the first part of a stage, and on whole clips after it.

    The batches are the same ones, cut: which samples a step sees does not change. Validation sees whole clips.

    Args:
        frames: of source and target; clips that are shorter are left as they are.
        share: of the stage's optimizer steps, in [0, 1], that are taken with short clips.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, frames: int = 1, share: float = 0.5) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share of ShortClips must be in [0, 1], got {share}.")
        self.frames, self.share = frames, share

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises ValueError where the model cannot encode so many frames."""
        if not (grid := editing(pl_module).grid).is_length(self.frames):
            raise ValueError(f"frames of ShortClips must be {grid.lengths}, got {self.frames}.")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if trainer.global_step < self.share * trainer.max_steps:
            batch.update(cut_clips(batch, self.frames, editing(pl_module).grid))


def cut_clips(batch: dict[str, Any], frames: int, grid: LatentGrid) -> dict[str, Tensor]:
    """The entries of a batch that have time, cut to their first frames.

    Args:
        batch: of a data module, see `icve.data.pairs.PairsDataModule`: pixels (uint8) or latents, one with a mask in
            pixels, the other with a region on the latent grid.
        frames: that can be encoded.
        grid: of the model.
    """
    latent_frames = grid.latents(1, 1, frames)[0]
    lengths = {"mask": frames, "region": latent_frames}
    for name in ("source", "target"):
        if name in batch:
            lengths[name] = frames if not batch[name].is_floating_point() else latent_frames
    return {name: batch[name][:, :, :length] for name, length in lengths.items() if name in batch}
