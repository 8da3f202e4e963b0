"""Short clips first: most of what instructions mean can be learned from a frame or two, at a fraction of the cost."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

TEMPORAL = 4  # frames of a latent frame, of every codec so far; the first one stands for a single frame


class ShortClips(Callback):
    """Trains on the beginning of every clip for the first part of a stage, and on whole clips after it.

    The batches are the same ones, cut: which samples a step sees does not change. Validation sees whole clips.

    Args:
        frames: 4k + 1, of source and target; clips that are shorter are left as they are.
        share: of the stage's optimizer steps, in [0, 1], that are taken with short clips.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, frames: int = 1, share: float = 0.5) -> None:
        if frames < 1 or frames % TEMPORAL != 1:
            raise ValueError(f"frames of ShortClips must be 4k+1 (1, 5, 9, ...), got {frames}.")
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share of ShortClips must be in [0, 1], got {share}.")
        self.frames, self.share = frames, share

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if trainer.global_step < self.share * trainer.max_steps:
            batch.update(cut_clips(batch, self.frames))


def cut_clips(batch: dict[str, Any], frames: int) -> dict[str, Tensor]:
    """The entries of a batch that have time, cut to their first frames.

    Args:
        batch: of a data module, see `icve.data.pairs.PairsDataModule`: pixels (uint8) or latents, one with a mask in
            pixels, the other with a region on the latent grid.
        frames: 4k + 1.
    """
    latent_frames = (frames - 1) // TEMPORAL + 1
    lengths = {"mask": frames, "region": latent_frames}
    for name in ("source", "target"):
        if name in batch:
            lengths[name] = frames if not batch[name].is_floating_point() else latent_frames
    return {name: batch[name][:, :, :length] for name, length in lengths.items() if name in batch}
