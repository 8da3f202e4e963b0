"""Which samples of a validation set every process loads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icve.data.buckets import Draw


def validation_batches(
    members: Sequence[Sequence[int] | np.ndarray], batch_size: int, rank: int = 0, groups: int = 1
) -> list[list[Draw]]:
    """A group's slices of the batches of a validation set: in order, bucket by bucket, the last of each may be smaller.

    The groups' slices follow each other in a batch. All get the same number of batches and at least one sample of
    each, because a forward pass may need all processes: a group for which there is none loads the batch's last one,
    and it is not counted.

    Args:
        members: row numbers of each bucket.
        batch_size: samples per batch, of all groups together.
        rank: number of the group.
        groups: of processes, each with samples of its own.

    Returns:
        Draws that are ``counted`` once over all groups for every row.
    """
    batches: list[list[Draw]] = []
    for rows in members:
        for begin in range(0, len(rows), batch_size):
            block = rows[begin : begin + batch_size]
            draws = [Draw(int(row), len(batches), position) for position, row in enumerate(block)]
            first, end = (len(draws) * r // groups for r in (rank, rank + 1))
            batches.append(draws[first:end] or [draws[-1]._replace(counted=False)])
    return batches
