"""The order in which training draws from several data sets: shares of samples that hold at every step.

The batch of step n is a pure function of (seed, n) and of what had been drawn when the mixture became what it is, which
is nothing at first. A change of the mixture goes on from there: no row comes again before the others of its set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from icve.data.buckets import StepSampler, StepSizes, check_ratios, digest
from icve.data.even_shares import EvenShares, fitted

Counts = dict[str, dict[str, int]]  # samples by data set and bucket


@dataclass(frozen=True)
class Drawn:
    """Samples of each data set and bucket that were drawn before a step."""

    step: int = 0
    samples: Counts = field(default_factory=dict)


class MixtureSampler(StepSampler):
    """Batches of several data sets: a batch is from one bucket, and of all data sets that have rows in it.

    Of all samples drawn, a data set has its weight's share, and within a data set every row comes equally often, so
    that a bucket has what its rows are due. `ratios` fix the buckets' shares of the steps instead; the data sets keep
    theirs. Within a bucket the data sets' shares hold at every sample (:class:`icve.data.even_shares.EvenShares`: to
    less than two, mostly to one), and the buckets' shares at every step (likewise). A data set is never further from
    its share of all samples than these two allow: where all have the same mix of buckets by a few samples, and where
    it alone has a bucket by two of that bucket's batches.

    A data set's rows in a bucket come in seeded permutations, one after the other without a gap, which depend on its
    name and not on the other data sets.

    Args:
        members: row numbers of each bucket of every data set, by its name.
        weights: of the data sets; one of 0 is not drawn from.
        sizes, seed, rank, start_batch: see :class:`icve.data.buckets.StepSampler`.
        ratios: share of steps per bucket.
        begun: what had been drawn when the mixture became what it is.

    Raises:
        ValueError: nothing to draw from, a batch that the groups cannot share, or ratios that are bad, or leave no room
            for the weights.
    """

    def __init__(
        self,
        members: Mapping[str, Sequence[Sequence[int] | np.ndarray]],
        weights: Mapping[str, float],
        sizes: StepSizes,
        seed: int = 0,
        rank: int = 0,
        start_batch: int = 0,
        ratios: Sequence[float] | None = None,
        begun: Drawn = Drawn(),
    ) -> None:
        super().__init__(sizes, seed, rank, start_batch)
        check_ratios(ratios, len(sizes.buckets))
        self.members = {name: [np.asarray(rows, dtype=np.int64) for rows in of] for name, of in members.items()}
        self.weights, self.begun = dict(weights), begun
        self._names = list(members)
        self._cells = cells = self._shares(ratios)
        of_bucket = [sum(column, Fraction()) for column in zip(*cells, strict=True)]
        self._steps = EvenShares([share / sizes.samples(bucket) for bucket, share in enumerate(of_bucket)])
        self._sets = [EvenShares(column) if any(column) else None for column in zip(*cells, strict=True)]
        for bucket in self.drawn:
            sizes.check(bucket)
        content = [(str(shape), str(sizes.samples(bucket))) for bucket, shape in enumerate(sizes.buckets)]
        self.schedule = f"{digest(repr((self._names, cells, content))):016x}"
        self._permutations: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    @property
    def drawn(self) -> list[int]:
        return [bucket for bucket, sets in enumerate(self._sets) if sets is not None]

    def describe(self) -> str:
        """The shares in words."""
        sets = []
        for name, of in zip(self._names, self._cells, strict=True):
            each = ", ".join(f"{float(part):.3g} in {self.sizes.buckets[n]}" for n, part in enumerate(of) if part)
            sets.append(f"{name} has {float(sum(of)):.3g} of all samples" + (f" ({each})" if each else ""))
        return "; ".join(sets)

    def drawn_before(self, step: int) -> Drawn:
        """What has been drawn before a step that is not before the mixture became what it is."""
        samples = {name: dict(of) for name, of in self.begun.samples.items()}
        for bucket, turns in enumerate(self._steps.counts(step - self.begun.step)):
            if (sets := self._sets[bucket]) is not None:
                counts = sets.counts(self.sizes.span(bucket, turns).start)
                for name, count in zip(self._names, counts, strict=True):
                    of, shape = samples.setdefault(name, {}), str(self.sizes.buckets[bucket])
                    of[shape] = of.get(shape, 0) + count
        return Drawn(step, samples)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint of that step keeps, for :func:`continued`; plain values only."""
        now = self.drawn_before(step)
        begun = {"since": self.begun.step, "before": self.begun.samples}
        return {**begun, "step": step, "drawn": now.samples, "schedule": self.schedule, "weights": self.weights}

    def _bucket(self, step: int) -> tuple[int, int]:
        return self._steps.turn(step - self.begun.step)

    def _member(self, bucket: int, place: int) -> int:
        sets = self._sets[bucket]
        assert sets is not None  # as buckets without samples have no steps
        number, turn = sets.turn(place)
        name, shape = self._names[number], str(self.sizes.buckets[bucket])
        rows = self.members[name][bucket]
        epoch, offset = divmod(self.begun.samples.get(name, {}).get(shape, 0) + turn, len(rows))
        if self._permutations.get((number, bucket), (None,))[0] != epoch:
            generator = np.random.default_rng(digest(self.seed, "order", name, shape, epoch))
            self._permutations[number, bucket] = epoch, generator.permutation(rows)
        return int(self._permutations[number, bucket][1][offset])

    def _shares(self, ratios: Sequence[float] | None) -> list[list[Fraction]]:
        """Share of all samples that each data set has in each bucket."""
        used = [ratios is None or ratios[bucket] > 0 for bucket in range(len(self.sizes.buckets))]
        rows_of = [[len(rows) * use for rows, use in zip(self.members[n], used, strict=True)] for n in self._names]
        weights = [Fraction(str(self.weights[name])) for name in self._names]
        for name, weight, of in zip(self._names, weights, rows_of, strict=True):
            if weight and not any(of):
                raise ValueError(f"No row of '{name}' is in a bucket that is drawn from: see bucket_ratios.")
        if not any(weights):
            raise ValueError("The mixture draws from nothing: give a data set a weight above 0.")
        cells = [
            [weight / sum(weights) * count / sum(of) if weight else Fraction() for count in of]
            for weight, of in zip(weights, rows_of, strict=True)
        ]
        if ratios is None:
            return cells
        filled = [any(column) for column in zip(*cells, strict=True)]
        parts = [
            Fraction(str(ratio)) * self.sizes.samples(bucket) * filled[bucket] for bucket, ratio in enumerate(ratios)
        ]
        table = fitted(cells, [part / sum(parts) for part in parts])
        if table is None:
            shares = ", ".join(
                f"{float(part / sum(parts)):.3g} of the samples in {shape}"
                for part, shape in zip(parts, self.sizes.buckets, strict=True)
                if part
            )
            raise ValueError(
                f"The mixture's weights cannot be met with these bucket_ratios, which put {shares}: leave "
                "bucket_ratios out, or give the data sets weights that fit the buckets that their rows are in."
            )
        return table
