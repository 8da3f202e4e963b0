"""Which batches a process loads, and which part of them."""

from typing import Any


def data_share(trainer: Any) -> tuple[int, int]:
    """Number of this process's part, and how many parts there are.

    The strategy knows: processes that share every sample's tokens (sequence parallelism) load the same part.

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
