"""Which batches a process loads, and which part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class SampleGroup:
    """Processes that train on the same samples and share the work of making them (sequence parallelism).

    Attributes:
        device: the group whose messages go between the devices.
        host: the same processes, with messages between the hosts that wait for no device.
    """

    device: ProcessGroup
    host: ProcessGroup

    @property
    def rank(self) -> int:
        return self.device.rank()

    @property
    def size(self) -> int:
        return self.device.size()

    def block(self, turn: int) -> int:
        """Number of this process's block of what is shared out in so many blocks as there are processes.

        Args:
            turn: moves the blocks on by so many processes, so that nobody always has the larger one.
        """
        return (self.rank - turn) % self.size

    def gather(self, value: Any) -> list[Any]:
        """What every process of the group gives, in their order; for what the host alone knows, as names."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self.host)
        return values


def block_of(count: int, block: int, blocks: int) -> range:
    """Which of `count` things are in a block; the blocks are in order, and as even as can be."""
    return range(count * block // blocks, count * (block + 1) // blocks)


def sample_group(trainer: Any) -> SampleGroup | None:
    """The processes that have the same samples as this one, as the strategy knows them; None where there are none.

    Args:
        trainer: Lightning's; None where there is none.
    """
    return getattr(getattr(trainer, "strategy", None), "sample_group", None)


def data_share(trainer: Any) -> tuple[int, int]:
    """Number of this process's part, and how many parts there are.

    The strategy knows: processes that share every sample's tokens (sequence parallelism) have the same part.

    Args:
        trainer: Lightning's; None where there is none.
    """
    sharing = None if trainer is None else trainer.distributed_sampler_kwargs
    return (sharing["rank"], sharing["num_replicas"]) if sharing else (0, 1)


def batches_done(trainer: Any) -> int:
    """Micro-batches that each process has trained on since the stage began, before it was resumed too.

    Lightning counts them and keeps the number in its checkpoints.

    Args:
        trainer: Lightning's; None where there is none.
    """
    return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed
