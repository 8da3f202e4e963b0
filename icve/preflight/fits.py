"""Which layouts of a run fit into the GPUs, how long a step takes in each, and what to change where none fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from icve.data.buckets import Bucket
from icve.models.counting import Counts
from icve.preflight.layouts import STRATEGIES, Layout, Memory, Model, communication, layouts, memory

_MOST_GPUS = 4096  # looked at when more are needed


@dataclass(frozen=True)
class Machine:
    """GPUs: how many, in nodes of how many, bytes of each, and what of them is set aside; FLOP/s that are reached."""

    gpus: int
    node: int
    memory: float
    reserve: float
    flops: float


@dataclass(frozen=True)
class Sized:
    """A bucket and one of its samples.

    Attributes:
        bucket: the bucket.
        tokens: of one sample, text included.
        share: of the run's steps.
        counts: without and with checkpointing.
        deviation: largest relative difference between the counts and their closed forms.
    """

    bucket: Bucket
    tokens: int
    share: float
    counts: Mapping[bool, Counts]
    deviation: float


@dataclass(frozen=True)
class Run:
    """What is trained: stage, model, buckets, samples per optimizer step, steps, whether blocks are checkpointed."""

    stage: str
    model: Model
    buckets: Sequence[Sized]
    batch: int
    steps: int
    checkpointing: bool


@dataclass(frozen=True)
class Option:
    """A layout with what it costs; sequences are per bucket.

    Attributes:
        layout: the layout.
        samples: of one group of GPUs in one pass.
        micro_steps: passes per optimizer step.
        memory: bytes per GPU.
        communication: bytes sent by each GPU in an optimizer step.
        seconds: of an optimizer step.
        fits: in every bucket.
        step_seconds: mean over the run.
    """

    layout: Layout
    samples: int
    micro_steps: int
    memory: Sequence[Memory]
    communication: Sequence[float]
    seconds: Sequence[float]
    fits: bool
    step_seconds: float

    @property
    def most(self) -> float:
        """Bytes per GPU in the bucket that needs most."""
        return max(part.total for part in self.memory)


def evaluate(run: Run, machine: Machine, layout: Layout, samples: int | None = None) -> Option:
    """A layout's cost.

    Args:
        run: what is trained.
        machine: on what.
        layout: how; its groups divide the batch.
        samples: per group and pass; None takes as many as fit.
    """
    per_group = run.batch // layout.groups
    if samples is None:
        divisors = [n for n in range(per_group, 0, -1) if per_group % n == 0]
        options = (evaluate(run, machine, layout, n) for n in divisors)
        return next(option for option in options if option.fits or option.samples == 1)
    micro_steps = per_group // samples
    counts = [sized.counts[layout.checkpointing] for sized in run.buckets]
    used = [
        memory(run.model, layout, count, sized.tokens, samples, machine.reserve)
        for sized, count in zip(run.buckets, counts, strict=True)
    ]
    flops = [run.batch * (count.forward + count.backward + count.recompute) for count in counts]
    seconds = [number / (layout.gpus * machine.flops) for number in flops]
    return Option(
        layout,
        samples,
        micro_steps,
        used,
        [communication(run.model, layout, sized.tokens, samples, micro_steps) for sized in run.buckets],
        seconds,
        max(part.total for part in used) <= machine.memory,
        sum(sized.share * time for sized, time in zip(run.buckets, seconds, strict=True)),
    )


def options(run: Run, machine: Machine, strategies: Sequence[str] = STRATEGIES) -> list[Option]:
    """Every layout of the GPUs, or, where none divides the batch, of the most of them for which one does."""
    for gpus in range(machine.gpus, 0, -1):
        found = list(layouts(gpus, run.model.heads, run.batch, machine.node, strategies))
        if found:
            return [evaluate(run, machine, layout) for layout in found]
    raise AssertionError("one GPU takes any batch")


def best(found: Sequence[Option]) -> Option | None:
    """Of the options that fit, the fastest, then the one that sends least, then the simplest; None if none fits."""
    return min(
        (option for option in found if option.fits),
        key=lambda option: (
            round(option.step_seconds, 6),
            max(option.communication),
            option.layout.sequence_parallel,
            option.layout.zero,
        ),
        default=None,
    )


def nearest(option: Option, found: Sequence[Option]) -> list[str] | None:
    """The fewest changes from a layout that does not fit to one that does, or None."""
    changes = [option.layout.differences(other.layout) for other in found if other.fits]
    return min(changes, key=len, default=None)


def remedies(run: Run, machine: Machine, strategies: Sequence[str] = STRATEGIES) -> list[str]:
    """What would make the run fit where no layout does."""
    told = []
    least = min(options(run, machine, strategies), key=lambda option: option.most)
    told.append(f"GPUs with at least {gib(least.most):.1f} GiB ({describe(least.layout)})")
    if run.model.frozen:
        without = replace(run, model=replace(run.model, frozen=0))
        freed = (
            f"cached latents and text embeddings (icve encode; --cached), which free {gib(run.model.frozen):.1f} GiB"
        )
        told += [freed] if best(options(without, machine, strategies)) else []
    gpus = machine.gpus
    while (gpus := gpus * 2) <= _MOST_GPUS:
        more = options(run, replace(machine, gpus=gpus), strategies)
        if (chosen := best(more)) is not None:
            told.append(f"{chosen.layout.gpus} GPUs ({describe(chosen.layout)})")
            break
    return told


def describe(layout: Layout) -> str:
    """A layout in words."""
    parts = [layout.strategy]
    if layout.sequence_parallel > 1:
        parts.append(f"sequence parallel {layout.sequence_parallel}")
    return ", ".join([*parts, "checkpointing" if layout.checkpointing else "no checkpointing"])


def gib(size: float) -> float:
    """Bytes in GiB, the unit GPU memory is sold in."""
    return size / 2**30
