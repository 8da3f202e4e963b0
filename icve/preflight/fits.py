"""Which layouts of a run fit into the GPUs, how long a step takes in each, and what to change where none fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from icve.data.buckets import Bucket
from icve.models.counting import Measured
from icve.preflight.encoding import Encoding
from icve.preflight.layouts import STRATEGIES, Layout, Memory, Model, communication, in_words, layouts, memory
from icve.training.distributed.activation_checkpointing import Checkpointing

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
        measured: counts of one sample for every way to checkpoint.
        encoding: of its samples.
    """

    bucket: Bucket
    tokens: int
    share: float
    measured: Measured
    encoding: Encoding = Encoding()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Run:
    """What is trained: stage, model, buckets, samples per optimizer step, steps, how blocks are checkpointed.

    Whether batches are encoded ahead changes no figure: it takes the same GPUs' work.
    """

    stage: str
    model: Model
    buckets: Sequence[Sized]
    batch: int
    steps: int
    checkpointing: Checkpointing
    encode_ahead: bool = False


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
        encoding: seconds of it in which clips and texts are encoded.
        fits: in every bucket.
        step_seconds: mean over the run.
    """

    layout: Layout
    samples: int
    micro_steps: int
    memory: Sequence[Memory]
    communication: Sequence[float]
    seconds: Sequence[float]
    encoding: Sequence[float]
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
    used, sent, seconds, encoding = [], [], [], []
    for sized in run.buckets:
        count = sized.measured.counts(layout.checkpointing.mode, layout.checkpointing.every)
        used.append(memory(run.model, layout, count, sized.tokens, samples, machine.reserve))
        sent.append(communication(run.model, layout, sized.tokens, samples, micro_steps))
        flops = run.batch * (count.forward + count.backward + count.recompute)
        encoding.append(micro_steps * sized.encoding.flops(samples, layout.sequence_parallel) / machine.flops)
        seconds.append(flops / (layout.gpus * machine.flops) + encoding[-1])
    fits = max(part.total for part in used) <= machine.memory
    mean = sum(sized.share * time for sized, time in zip(run.buckets, seconds, strict=True))
    return Option(layout, samples, micro_steps, used, sent, seconds, encoding, fits, mean)


def options(run: Run, machine: Machine, strategies: Sequence[str] = STRATEGIES) -> list[Option]:
    """Every layout of the GPUs, or, where none divides the batch, of the most of them for which one does."""
    for gpus in range(machine.gpus, 0, -1):
        found = list(layouts(gpus, run.model, run.batch, machine.node, strategies))
        if found:
            return [evaluate(run, machine, layout) for layout in found]
    raise AssertionError("one GPU takes any batch")


def best(found: Sequence[Option]) -> Option | None:
    """Of the options that fit, the fastest, then the one that sends least, then the simplest; None if none fits."""

    def cost(option: Option) -> tuple[float, ...]:
        layout = option.layout
        return round(option.step_seconds, 6), max(option.communication), layout.sequence_parallel, layout.zero

    return min((option for option in found if option.fits), key=cost, default=None)


def nearest(option: Option, found: Sequence[Option]) -> list[str] | None:
    """The fewest changes from a layout that does not fit to one that does, or None."""
    changes = [option.layout.differences(other.layout) for other in found if other.fits]
    return min(changes, key=len, default=None)


def remedies(run: Run, machine: Machine, strategies: Sequence[str] = STRATEGIES) -> list[str]:
    """What would make the run fit where no layout does."""
    least = min(options(run, machine, strategies), key=lambda option: option.most)
    found = [f"GPUs with at least {gib(least.most):.1f} GiB ({describe(least.layout)})"]
    without_frozen = replace(run, model=replace(run.model, frozen=0))
    if run.model.frozen and best(options(without_frozen, machine, strategies)):
        cached = "cached latents and text embeddings (icve encode; --cached)"
        found.append(f"{cached}, which free {gib(run.model.frozen):.1f} GiB")
    gpus = machine.gpus
    while (gpus := gpus * 2) <= _MOST_GPUS:
        if (chosen := best(options(run, replace(machine, gpus=gpus), strategies))) is not None:
            return [*found, f"{chosen.layout.gpus} GPUs ({describe(chosen.layout)})"]
    return found


def describe(layout: Layout) -> str:
    """A layout in words."""
    shared = f"sequence parallel {layout.sequence_parallel}, " if layout.sequence_parallel > 1 else ""
    return f"{layout.strategy}, {shared}{in_words(layout.checkpointing)}"


def gib(size: float) -> float:
    """Bytes in GiB, the unit GPU memory is sold in."""
    return size / 2**30
