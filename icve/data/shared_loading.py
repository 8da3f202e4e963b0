"""Batches that a group of processes loads together: each decodes its part, and all learn what the others have.

Only names and shapes pass between the hosts, when a batch is fetched. The clips follow once they are on the devices
(`gather_clips`), where a link is fast, so that no process waits for its device here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from icve.data.buckets import Draw, StepSampler
from icve.data.share import SampleGroup, block_of


class Shared(NamedTuple):
    """A tensor of a batch that lies in parts on the processes of a group.

    Attributes:
        dtype: of its numbers.
        shape: of one sample's.
        parts: (rank in the group, samples) in the samples' order.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


class OwnDraws(Sampler[list[Draw]]):
    """This process's part of every batch.

    Args:
        batches: the whole ones, the same on every process of the group.
        group: the processes.
        workers: that load the batches in turns.
    """

    def __init__(self, batches: Iterable[list[Draw]], group: SampleGroup, workers: int) -> None:
        self.batches, self.group, self.workers = batches, group, max(1, workers)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # asked of a validation's only, which is a list

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.batches.start_batch if isinstance(self.batches, StepSampler) else 0
        for number, draws in enumerate(self.batches, first):
            # A process's turn lasts a batch for each of its workers: otherwise always the same one would have to work.
            part = block_of(len(draws), self.group.block(number // self.workers), self.group.size)
            yield draws[part.start : part.stop]


def complete(own: Iterator[dict[str, Any]], group: SampleGroup, first: int, workers: int) -> Iterator[dict[str, Any]]:
    """Batches as all of a group know them, from those parts that each loads.

    Args:
        own: this process's parts.
        group: the processes.
        first: number of the first batch.
        workers: as `OwnDraws` has it.

    Yields:
        All samples' lists, this process's part of the tensors, and in `shared` what `gather_clips` needs; the batch as
        it is where nobody has a sample.

    Raises:
        ValueError: as a process of the group does, on all of them; or samples of a batch differ in shape.
        RuntimeError: a process of the group has failed in another way.
    """
    number = first
    while True:
        try:
            part = next(own, None)
        except Exception as error:
            group.gather((isinstance(error, ValueError), str(error)))  # the others wait for this part
            raise
        if part is None:
            return
        told = group.gather({name: _shape(value) for name, value in part.items()})
        for failure in told:
            if isinstance(failure, tuple):
                known, reason = failure
                raise ValueError(reason) if known else RuntimeError(f"Another process cannot load its part: {reason}")
        turn = number // max(1, workers)
        ranks = [(block + turn) % group.size for block in range(group.size)]
        yield _joined(part, [(rank, told[rank]) for rank in ranks])
        number += 1


def _shape(value: Any) -> Any:
    return (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value


def _joined(own: dict[str, Any], parts: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """A batch from what the ranks, in the order of their samples, tell of their parts."""
    filled = [(rank, part) for rank, part in parts if part["id"]]
    if not filled:
        return own
    batch: dict[str, Any] = {}
    shared: dict[str, Shared] = {}
    for name, first in filled[0][1].items():
        if isinstance(first, list):
            batch[name] = [entry for _, part in filled for entry in part[name]]
            continue
        kinds = {(part[name][0], part[name][1][1:]) for _, part in filled}
        if len(kinds) > 1:
            shapes = " and ".join(sorted(str(list(shape)) for _, shape in kinds))
            raise ValueError(
                f"The {name}s of a batch have the shapes {shapes}: a transform that changes the length of clips must "
                "change all of a step alike (per_step)."
            )
        dtype, shape = next(iter(kinds))
        shared[name] = Shared(dtype, shape, tuple((rank, part[name][1][0]) for rank, part in filled))
        if name in own:
            batch[name] = own[name]
    return batch | {"shared": shared}


def gather_clips(batch: dict[str, Any], group: SampleGroup, device: torch.device) -> dict[str, Any]:
    """The batch with all samples' tensors on every process of the group, from its parts on the devices.

    Args:
        batch: of `complete`; one that is whole stays as it is.
        group: the processes.
        device: where the tensors are.
    """
    whole = {name: value for name, value in batch.items() if name != "shared"}
    for name, (dtype, shape, parts) in batch.get("shared", {}).items():
        whole[name] = torch.empty(sum(count for _, count in parts), *shape, dtype=dtype, device=device)
        blocks = whole[name].split([count for _, count in parts])
        for (rank, _), block in zip(parts, blocks, strict=True):
            if rank == group.rank:
                block.copy_(batch[name])
            dist.broadcast(block, dist.get_global_rank(group.device, rank), group.device)
    return whole
