"""Strategies of training, for `trainer.strategy.class_path`: how processes share the work and the training state.

All of them take `sequence_parallel_size`, give the same losses as one process to rounding, and read each other's
checkpoints.
"""

from lightning.pytorch.strategies import DDPStrategy

from icve.training.distributed.fsdp import FSDPUlyssesStrategy
from icve.training.distributed.ulysses import UlyssesGroups
from icve.training.distributed.zero import DeepSpeedUlyssesStrategy

__all__ = ["DDPUlyssesStrategy", "DeepSpeedUlyssesStrategy", "FSDPUlyssesStrategy"]


class DDPUlyssesStrategy(UlyssesGroups, DDPStrategy):
    """Lightning's DDP with sequence parallelism: every process holds the whole model and its optimizer's state."""
