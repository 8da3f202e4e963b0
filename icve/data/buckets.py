"""Buckets (height, width, frames) and the order in which training draws batches from them.

The batch of step n is a pure function of (seed, n): it can be computed without the batches before it, so a resumed run
starts at any batch at once and no state of a sampler has to be saved.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from icve.data.latent_grid import LatentGrid

_CROP_TOLERANCE = 0.125
_LARGEST_SIDE = 1 << 26
_CYCLE = 10_000  # steps over which given ratios are rounded


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

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"


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


def choose_buckets(buckets: Sequence[Bucket], width: np.ndarray, height: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """:func:`choose_bucket` of many clips.

    Args:
        width, height, frames: (N,) int64.

    Returns:
        (N,) int16, -1 where a clip is shorter than all buckets.
    """
    kept = np.full((len(buckets), len(width)), -1.0)
    for i, bucket in enumerate(buckets):
        across, down = width * bucket.height, bucket.width * height
        fits = (bucket.frames <= frames) & (across > 0) & (down > 0)
        kept[i, fits] = np.minimum(across, down)[fits] / np.maximum(across, down)[fits]
    close = (kept >= kept.max(axis=0) - _CROP_TOLERANCE) & (kept >= 0)
    chosen = np.full(len(width), -1, dtype=np.int16)
    most, least_crop, pixels = (np.full(len(width), -1.0) for _ in range(3))
    for i, bucket in enumerate(buckets):
        area = bucket.height * bucket.width
        same = bucket.frames == most
        crops_less = (kept[i] > least_crop) | ((kept[i] == least_crop) & (area > pixels))
        better = close[i] & ((bucket.frames > most) | (same & crops_less))
        chosen[better], most[better], least_crop[better], pixels[better] = i, bucket.frames, kept[i, better], area
    # Products beyond what a float holds exactly: a size that no video has.
    for odd in np.flatnonzero(np.maximum(width, height) >= _LARGEST_SIDE):
        one = choose_bucket(buckets, *(int(values[odd]) for values in (width, height, frames)))
        chosen[odd] = -1 if one is None else one
    return chosen


class Draw(NamedTuple):
    """One sample to load: row number, the step and position in its global batch it stands at, and whether it counts in
    the figures of a validation.
    """

    row: int
    batch: int
    position: int
    counted: bool = True


@dataclass(frozen=True)
class StepSizes:
    """How many samples an optimizer step takes from a bucket, and how they are split into micro-batches.

    All groups of processes have equally many samples in every micro-batch, so none waits for another. Where the groups
    do not divide a batch, it is the multiple of them below or above, in such turns that its size is met on average: 12
    samples on 8 groups are 8 and 16 by turns.

    Args:
        buckets: shapes of the samples.
        batch_size: samples of a step's batch, of all groups together.
        groups: groups of processes that share a sample's tokens; processes where nothing is shared.
        micro_steps: passes per step, the same for all buckets, as the trainer counts (`accumulate_grad_batches`). A
            batch that needs fewer leaves the others empty; the last is never empty.
        tokens_per_batch: tokens of a step's batch (:meth:`tokens`) instead of `batch_size`: a bucket of small samples
            then has more of them.
        tokens_per_micro_batch: a group computes as many samples at once as have no more tokens, at least one; None
            spreads the batch over all micro-steps.
        grid: strides and patches, which tokens are counted with.
        references: samples may have a picture, whose tokens count too.

    Raises:
        ValueError: a size below 1.
    """

    buckets: Sequence[Bucket]
    batch_size: int
    groups: int = 1
    micro_steps: int = 1
    tokens_per_batch: int | None = None
    tokens_per_micro_batch: int | None = None
    grid: LatentGrid = field(default_factory=LatentGrid)
    references: bool = False

    def tokens(self, bucket: int) -> int:
        """Of a sample's source and target together, and of its reference picture, which some samples may lack."""
        shape = self.buckets[bucket]
        picture = self.grid.tokens(shape.height, shape.width, 1) if self.references else 0
        return 2 * self.grid.tokens(*shape) + picture

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens_per_batch", "tokens_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")

    def samples(self, bucket: int) -> Fraction:
        """Samples of a step's batch, on average."""
        if self.tokens_per_batch is None:
            return Fraction(self.batch_size)
        return Fraction(self.tokens_per_batch, self.tokens(bucket))

    def span(self, bucket: int, turn: int) -> range:
        """Which samples of the bucket's endless stream its batch number `turn` takes."""
        per_group = self.samples(bucket) / self.groups
        return range(int(turn * per_group) * self.groups, int((turn + 1) * per_group) * self.groups)

    def part(self, bucket: int, samples: int, micro_step: int) -> range:
        """Which of a group's `samples` in a step are in the micro-batch of that number, counted from 0."""
        full = self._passes(bucket, samples)
        # Spread over the step rather than put at its end: loading goes on while the empty ones pass by.
        first, end = (place * full // self.micro_steps for place in (micro_step, micro_step + 1))
        return range(first * samples // full, end * samples // full)

    def check(self, bucket: int) -> None:
        """Raise ValueError when the groups or the micro-steps cannot share the bucket's batches."""
        shape, most = self.buckets[bucket], math.ceil(self.samples(bucket) / self.groups)
        if self.samples(bucket) < self.groups:
            raise ValueError(
                f"A batch of {float(self.samples(bucket)):g} samples of bucket {shape} is too small for {self.groups} "
                f"groups of processes: raise batch_size x accumulate_grad_batches (or tokens_per_batch) to "
                f"{self.groups} samples, or let more processes share a sample's tokens (sequence_parallel_size)."
            )
        if (passes := self._passes(bucket, most)) > self.micro_steps:
            raise ValueError(
                f"A batch of bucket {shape} takes {passes} passes of at most {self.tokens_per_micro_batch} tokens "
                f"(tokens_per_micro_batch) and a step has {self.micro_steps}: set trainer.accumulate_grad_batches to "
                f"{passes} or more, and batch_size so that their product stays what it is."
            )

    def describe(self, bucket: int) -> str:
        """The sizes in words."""
        shape, mean = self.buckets[bucket], self.samples(bucket)
        low, high = (bound(mean / self.groups) * self.groups for bound in (math.floor, math.ceil))
        count = f"{low}" if low == high else f"{low} or {high} (on average {float(mean):.1f})"
        passes = self._passes(bucket, high // self.groups)
        at_once = math.ceil(high / self.groups / passes)
        tokens = at_once * self.tokens(bucket)
        return f"{shape} {count} samples, {at_once} ({tokens} tokens) at once on each of {self.groups}"

    def _passes(self, bucket: int, samples: int) -> int:
        """Micro-batches that a group's samples in a step make."""
        if self.tokens_per_micro_batch is None:
            return min(samples, self.micro_steps)
        return math.ceil(samples / max(1, self.tokens_per_micro_batch // self.tokens(bucket)))


class StepSampler(Sampler[list[Draw]], ABC):
    """Endless stream of micro-batches; those of an optimizer step are its global batch, which is from one bucket.

    Args:
        sizes: samples of a step and of its micro-batches.
        seed: orders samples and buckets.
        rank: number of this process's group, whose slice of every micro-batch is drawn. Which samples a step's global
            batch holds does not depend on it, nor on how the batch is split.
        start_batch: number of the first micro-batch; may be set until iteration begins.
    """

    def __init__(self, sizes: StepSizes, seed: int = 0, rank: int = 0, start_batch: int = 0) -> None:
        self.sizes, self.seed, self.rank, self.start_batch = sizes, seed, rank, start_batch

    @property
    @abstractmethod
    def drawn(self) -> list[int]:
        """Numbers of the buckets that are drawn from."""

    @abstractmethod
    def _bucket(self, step: int) -> tuple[int, int]:
        """Bucket of a step's batch, and how many batches of that bucket are before it."""

    @abstractmethod
    def _member(self, bucket: int, place: int) -> int:
        """Row number at a place of the bucket's endless stream."""

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start_batch
        while True:
            yield self.micro_batch(number)
            number += 1

    def micro_batch(self, number: int) -> list[Draw]:
        """This group's slice of the micro-batch of that number; empty where its step needs no more."""
        part, _ = self._part(number)
        first = part.start * self.sizes.groups + self.rank * len(part)
        return self.batch(number // self.sizes.micro_steps)[first : first + len(part)] if part else []

    def weight(self, number: int) -> float:
        """What the mean loss of that micro-batch is multiplied by: the mean over the step's micro-batches is then the
        mean over the samples of its global batch.
        """
        part, samples = self._part(number)
        return len(part) * self.sizes.micro_steps / samples

    def samples(self, number: int) -> int:
        """Samples of the global batch that the micro-batch of that number is from."""
        return self._part(number)[1] * self.sizes.groups

    def batch(self, step: int) -> list[Draw]:
        """The whole global batch of a step."""
        bucket, turn = self._bucket(step)
        return [Draw(self._member(bucket, i), step, at) for at, i in enumerate(self.sizes.span(bucket, turn))]

    def _part(self, number: int) -> tuple[range, int]:
        """Which of a group's samples in its step a micro-batch takes, and how many these are."""
        step, micro_step = divmod(number, self.sizes.micro_steps)
        bucket, turn = self._bucket(step)
        samples = len(self.sizes.span(bucket, turn)) // self.sizes.groups
        return self.sizes.part(bucket, samples, micro_step), samples


class BucketBatchSampler(StepSampler):
    """Batches of one data set.

    A bucket's samples come in seeded permutations, one after the other without a gap: a batch at the end of one is
    filled from the next, so nothing is left over and every sample of a bucket is seen equally often (a batch across
    that border, or larger than its bucket, may hold a sample twice). Buckets alternate as evenly as their shares allow.

    Args:
        members: row numbers of each bucket; empty buckets are never drawn.
        sizes, seed, rank, start_batch: see :class:`StepSampler`.
        ratios: share of steps per bucket; None gives every sample the same share (to 1 in 10 000 where buckets have
            batches of different sizes).

    Raises:
        ValueError: no members, a batch that the groups cannot share, or bad ratios.
    """

    def __init__(
        self,
        members: Sequence[Sequence[int] | np.ndarray],
        sizes: StepSizes,
        seed: int = 0,
        rank: int = 0,
        start_batch: int = 0,
        ratios: Sequence[float] | None = None,
    ) -> None:
        if not any(len(rows) for rows in members):
            raise ValueError("There is nothing to draw from: every bucket is empty.")
        check_ratios(ratios, len(members))
        super().__init__(sizes, seed, rank, start_batch)
        self.members = [np.asarray(rows, dtype=np.int64) for rows in members]
        self._turns = self._share(ratios)
        for bucket in self.drawn:
            sizes.check(bucket)
        self._cycle, self._turn_in_cycle = self._interleave()
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def drawn(self) -> list[int]:
        """Numbers of the buckets that are drawn from."""
        return [bucket for bucket, turns in enumerate(self._turns) if turns]

    def _share(self, ratios: Sequence[float] | None) -> np.ndarray:
        """Steps of each bucket in one cycle."""
        rows = np.array([len(rows) for rows in self.members], dtype=np.int64)
        samples = [self.sizes.samples(bucket) for bucket in range(len(rows))]
        if ratios is None and len(set(samples)) == 1:
            return rows // np.gcd.reduce(rows)
        shares = rows / np.array(samples, dtype=np.float64) if ratios is None else np.asarray(ratios, dtype=np.float64)
        weights = np.where(rows > 0, shares, 0.0)
        if weights.sum() == 0:
            raise ValueError("The buckets with a positive ratio are all empty.")
        turns = np.maximum(np.rint(weights / weights.sum() * _CYCLE).astype(np.int64), weights > 0)
        return turns // np.gcd.reduce(turns)

    def _interleave(self) -> tuple[np.ndarray, np.ndarray]:
        """Bucket of each step of a cycle, and how many steps of that bucket stand before it in the cycle."""
        phases = np.random.default_rng([self.seed & 0xFFFFFFFF, len(self.members)]).random(len(self.members))
        # Small types: a cycle may be as long as the manifest.
        buckets = np.repeat(np.arange(len(self._turns), dtype=np.int16), self._turns)
        turns = np.concatenate([np.arange(count, dtype=np.int32) for count in self._turns])
        order = np.argsort((turns + phases[buckets]) / self._turns[buckets], kind="stable")
        return buckets[order], turns[order]

    def _bucket(self, step: int) -> tuple[int, int]:
        cycle, place = divmod(step, len(self._cycle))
        bucket = int(self._cycle[place])
        return bucket, cycle * int(self._turns[bucket]) + int(self._turn_in_cycle[place])

    def _member(self, bucket: int, place: int) -> int:
        epoch, offset = divmod(place, len(self.members[bucket]))
        if self._permutations.get(bucket, (None,))[0] != epoch:
            generator = np.random.default_rng(digest(self.seed, "order", bucket, epoch))
            self._permutations[bucket] = epoch, generator.permutation(self.members[bucket])
        return int(self._permutations[bucket][1][offset])


def check_ratios(ratios: Sequence[float] | None, buckets: int) -> None:
    """Raise ValueError unless there is a ratio of at least 0 for each bucket, or none at all."""
    if ratios is not None and (len(ratios) != buckets or min(ratios) < 0):
        raise ValueError(f"Give one ratio of at least 0 for each of the {buckets} buckets, not {list(ratios)}.")


def replacement(members: Sequence[int] | np.ndarray, seed: int, draw: Draw, attempt: int) -> int:
    """Row in place of an unreadable one, a pure function of the seed, the place and the attempt (counted from 1)."""
    return int(members[digest(seed, "replacement", draw.batch, draw.position, attempt) % len(members)])


def draw_generator(seed: int, draw: Draw, purpose: str, per_step: bool = False) -> np.random.Generator:
    """Random numbers of one sample: a pure function of the seed, the place and the purpose, whatever row stands there.

    Args:
        per_step: the same for all positions of a step's global batch.
    """
    return np.random.default_rng(digest(seed, purpose, draw.batch, "all" if per_step else draw.position))


def digest(*parts: int | str) -> int:
    """A number of 64 bits that stands for these."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
