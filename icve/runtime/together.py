"""Work that all processes do, or none has done: a failure on one of them is known to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def together(work: Callable[[], Result]) -> list[Result]:
    """Run something on every process; to be called by all at the same place.

    Returns:
        What every process got, by rank.

    Raises:
        OSError: one of them failed; raised by all, with its words. A process that is alone raises what it met.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [work()]
    own: tuple[Any, str | None]
    try:
        own = work(), None
    except Exception as error:  # whatever it is, the others must not wait for this process
        own = None, f"process {dist.get_rank()}: {error}"
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, own)
    if problems := [problem for _, problem in everybody if problem is not None]:
        raise OSError("; ".join(problems))
    return [result for result, _ in everybody]
