"""Work that all processes do, or none has done: a failure on one of them is known to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")


class FailedTogether(OSError):
    """What all processes had to do has failed on some; raised by all. ``reason`` is in the words of the first."""

    def __init__(self, problems: dict[int, str]) -> None:
        super().__init__("; ".join(f"process {rank}: {problem}" for rank, problem in problems.items()))
        self.reason = next(iter(problems.values()))


def gather(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """What every process of a group (default: all) has, by rank; to be called by all, and waits for the last one."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def process_place() -> tuple[int, int]:
    """Number of this process among all, and how many there are."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def together(work: Callable[[], Result], group: ProcessGroup | None = None) -> Result:
    """Run something on every process of a group (default: all), by all at the same place; returns its own result.

    Raises:
        FailedTogether: one of them failed. A process that is alone raises what it met.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return work()
    failure, result = None, cast(Result, None)
    try:
        result = work()
    except Exception as error:  # whatever it is, the others must not wait for this process
        failure = error
    texts = gather(None if failure is None else str(failure), group)
    if problems := {rank: text for rank, text in enumerate(texts) if text is not None}:
        raise FailedTogether(problems) from failure
    return result


def sum_of_all(values: Tensor) -> list[float]:
    """Sums (n,) over the processes, in one small reduction that all call; waits for the device that `values` are on."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values.tolist()
