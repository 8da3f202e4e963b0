"""Strategies of training, for `trainer.strategy.class_path`: how processes share the work and the training state.

All of them take `sequence_parallel_size`, give the same losses as one process to rounding, and read each other's
checkpoints.
"""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy

from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.state_dicts import deal, take_slices
from icve.training.distributed.fsdp import FSDPUlyssesStrategy
from icve.training.distributed.ulysses import UlyssesGroups
from icve.training.distributed.zero import DeepSpeedUlyssesStrategy

__all__ = ["DDPUlyssesStrategy", "DeepSpeedUlyssesStrategy", "FSDPUlyssesStrategy"]


class DDPUlyssesStrategy(UlyssesGroups, DDPStrategy):
    """Lightning's DDP with sequence parallelism: every process holds the whole model and its optimizer's state."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the folder: the tensors are dealt out among the processes."""
        contents, slices = take_slices(checkpoint)
        folders, own = cast(CheckpointFolders, self.checkpoint_io), deal(slices, self.global_rank, self.world_size)
        folders.save_shared(contents, Path(self.broadcast(str(filepath))), own, storage_options)
