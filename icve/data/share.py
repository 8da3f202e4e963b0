"""Which part of every batch a process loads."""

from typing import Any


def data_share(trainer: Any) -> tuple[int, int]:
    """Number of this process's part, and how many parts there are.

    The strategy knows: processes that share every sample's tokens (sequence parallelism) load the same part.

    Args:
        trainer: Lightning's; None where there is none.
    """
    sharing = None if trainer is None else trainer.distributed_sampler_kwargs
    return (sharing["rank"], sharing["num_replicas"]) if sharing else (0, 1)
