"""Buckets (height, width, frames) and the order in which training draws batches from them.

Batch n is a pure function of (seed, n): it can be computed without the batches before it, so a resumed run starts at
any batch at once and no state of a sampler has to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

_CROP_TOLERANCE = 0.125
_CYCLE = 10_000  # batches over which given ratios are rounded


class Bucket(NamedTuple):
    """Shape every clip of a batch is brought to."""

    height: int
    width: int
    frames: int

    @classmethod
    def parse(cls, values: Sequence[int]) -> Bucket:
        """From a list [height, width, frames] of positive whole numbers, as in a YAML. Raises ValueError otherwise."""
        if len(values) != 3 or any(int(value) != value or value < 1 for value in values):
            raise ValueError(f"A bucket is [height, width, frames], three positive whole numbers, not {list(values)}.")
        return cls(*(int(value) for value in values))


def choose_bucket(buckets: Sequence[Bucket], width: int, height: int, frames: int) -> int | None:
    """Bucket for a clip: little cropping first, then as many frames as the clip has, then resolution.

    Of the buckets with no more frames than the clip, those whose crop keeps within 12.5 % of the picture area of the
    best one compete; the most frames win, then the smallest crop, then the most pixels, then the first listed.

    Returns:
        Position in ``buckets``, or None when the clip is shorter than all of them.
    """
    kept = {
        i: min(width * bucket.height, bucket.width * height) / max(width * bucket.height, bucket.width * height)
        for i, bucket in enumerate(buckets)
        if bucket.frames <= frames
    }
    best = max(kept.values(), default=0.0)
    close = [i for i in kept if kept[i] >= best - _CROP_TOLERANCE]
    return max(
        close,
        key=lambda i: (buckets[i].frames, kept[i], buckets[i].height * buckets[i].width, -i),
        default=None,
    )


class Draw(NamedTuple):
    """One sample to load: row number, and the batch and position in the global batch it stands at."""

    index: int
    batch: int
    position: int


class BucketBatchSampler(Sampler[list[Draw]]):
    """Endless stream of batches, each from one bucket.

    A bucket's samples come in seeded permutations, one after the other without a gap: a batch at the end of one is
    filled from the next, so nothing is left over and every sample of a bucket is seen equally often (a batch across
    that border, or larger than its bucket, may hold a sample twice). Buckets alternate as evenly as their shares allow.

    Args:
        members: row numbers of each bucket; empty buckets are never drawn.
        batch_size: samples of the *global* batch.
        seed: orders samples and buckets.
        rank, world: this process's slice of the global batch, positions [rank * b, (rank + 1) * b) with
            b = batch_size / world. Which samples the global batch holds does not depend on them.
        start_batch: number of the first batch; may be set until iteration begins.
        ratios: share of batches per bucket; None gives every sample the same share.

    Raises:
        ValueError: no members, a batch that the processes cannot share equally, or bad ratios.
    """

    def __init__(
        self,
        members: Sequence[Sequence[int]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_batch: int = 0,
        ratios: Sequence[float] | None = None,
    ) -> None:
        if not any(len(rows) for rows in members):
            raise ValueError("There is nothing to draw from: every bucket is empty.")
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"batch_size is that of all processes together: {batch_size} must be a multiple of {world}."
            )
        if ratios is not None and (len(ratios) != len(members) or min(ratios) < 0):
            raise ValueError(
                f"Give one ratio of at least 0 for each of the {len(members)} buckets, not {list(ratios)}."
            )
        self.members = [np.asarray(rows, dtype=np.int64) for rows in members]
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.start_batch = start_batch
        self._turns = self._share(ratios)
        self._cycle, self._turn_in_cycle = self._interleave()
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        batch = self.start_batch
        local = self.batch_size // self.world
        while True:
            yield self.batch(batch)[self.rank * local : (self.rank + 1) * local]
            batch += 1

    def batch(self, number: int) -> list[Draw]:
        """The whole global batch of that number."""
        bucket, turn = self._bucket(number)
        first = turn * self.batch_size
        return [Draw(self._member(bucket, first + i), number, i) for i in range(self.batch_size)]

    def _share(self, ratios: Sequence[float] | None) -> np.ndarray:
        """Batches of each bucket in one cycle."""
        sizes = np.array([len(rows) for rows in self.members], dtype=np.int64)
        if ratios is None:
            return sizes // np.gcd.reduce(sizes)
        weights = np.where(sizes > 0, np.asarray(ratios, dtype=np.float64), 0.0)
        if weights.sum() == 0:
            raise ValueError("The buckets with a positive ratio are all empty.")
        turns = np.maximum(np.rint(weights / weights.sum() * _CYCLE).astype(np.int64), weights > 0)
        return turns // np.gcd.reduce(turns)

    def _interleave(self) -> tuple[np.ndarray, np.ndarray]:
        """Bucket of each batch of a cycle, and how many batches of that bucket stand before it in the cycle."""
        phases = np.random.default_rng([self.seed & 0xFFFFFFFF, len(self.members)]).random(len(self.members))
        buckets = np.repeat(np.arange(len(self._turns)), self._turns)
        turns = np.concatenate([np.arange(count) for count in self._turns])
        order = np.argsort((turns + phases[buckets]) / self._turns[buckets], kind="stable")
        return buckets[order], turns[order]

    def _bucket(self, number: int) -> tuple[int, int]:
        cycle, place = divmod(number, len(self._cycle))
        bucket = int(self._cycle[place])
        return bucket, cycle * int(self._turns[bucket]) + int(self._turn_in_cycle[place])

    def _member(self, bucket: int, place: int) -> int:
        epoch, offset = divmod(place, len(self.members[bucket]))
        if self._permutations.get(bucket, (None,))[0] != epoch:
            generator = np.random.default_rng(_digest(self.seed, "order", bucket, epoch))
            self._permutations[bucket] = epoch, generator.permutation(self.members[bucket])
        return int(self._permutations[bucket][1][offset])


def replacement(members: Sequence[int], seed: int, draw: Draw, attempt: int) -> int:
    """Row in place of an unreadable one, a pure function of the seed, the place and the attempt (counted from 1)."""
    return int(members[_digest(seed, "replacement", draw.batch, draw.position, attempt) % len(members)])


def _digest(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
