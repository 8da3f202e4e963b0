"""Simulate the batches of many GPUs: how evenly the tokens are shared, in which micro-batches, and what is left over.

    python tools/bench_buckets.py
    python tools/bench_buckets.py --gpus 16 --sequence-parallel 2 8 --batch 12 --micro-steps 6 --micro-tokens 57600

Draws one epoch with the sampler of training, on the shapes of configs/sft.yaml, for every process by itself. Idle is
1 - tokens computed / (processes x tokens of the slowest process), summed over micro-batches, in each of which processes
wait for each other; "if fixed" is the idle share of batches of exactly the given size. Text tokens, which every process
of a group has, are not counted. No GPU is needed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from statistics import fmean

from icve.data.buckets import Bucket, BucketBatchSampler, StepSizes
from icve.data.latent_grid import LatentGrid
from icve.models.sequence_parallel import split_sizes
from icve.preflight.plan_report import table

BUCKETS = (
    Bucket(480, 768, 77),
    Bucket(768, 480, 77),
    Bucket(576, 1024, 21),
    Bucket(1024, 576, 21),
    Bucket(336, 592, 29),
    Bucket(592, 336, 29),
    Bucket(480, 480, 125),
)
PERCENT = (40, 20, 10, 5, 15, 5, 5)
ROWS = 10_000


@dataclass(frozen=True)
class Simulation:
    """One epoch: as many steps as draw at least as many samples as there are rows.

    Attributes:
        steps: of the optimizer.
        samples: fewest, mean and most samples of a step.
        passes: mean number of micro-batches of a step that have samples.
        tokens: fewest, mean and most tokens that a process computes at once.
        idle: share of the processes' time in which they wait for others, if tokens take equal time.
        fixed: the same if every step had exactly the given samples: some groups would then have one less than others.
        waiting: rows not yet drawn when the epoch ends; they come first in the next.
        dropped: rows not drawn when the next has ended either: those that are lost.
    """

    steps: int
    samples: tuple[int, float, int]
    passes: float
    tokens: tuple[int, float, int]
    idle: float
    fixed: float | None
    waiting: int
    dropped: int


def members(rows: int = ROWS) -> list[list[int]]:
    """Row numbers of each bucket."""
    ends = [0, *(rows * share // 100 for share in accumulate(PERCENT))]
    return [list(range(first, end)) for first, end in pairwise(ends)]


def simulate(
    gpus: int,
    sequence_parallel: int,
    batch: int,
    micro_steps: int = 1,
    batch_tokens: int | None = None,
    micro_tokens: int | None = None,
    rows: int = ROWS,
) -> Simulation:
    """Draw an epoch.

    Args:
        gpus: processes.
        sequence_parallel: processes that share a sample's tokens; it divides their number.
        batch: samples of a step.
        micro_steps: passes of a step (`accumulate_grad_batches`).
        batch_tokens, micro_tokens: `tokens_per_batch` and `tokens_per_micro_batch` of the data module.
        rows: of the manifest.

    Raises:
        ValueError: the batch cannot be shared, see :class:`icve.data.buckets.StepSizes`.
    """
    groups = gpus // sequence_parallel
    sizes = StepSizes(BUCKETS, batch, groups, micro_steps, batch_tokens, micro_tokens)
    of_bucket = members(rows)
    owner = {row: bucket for bucket, rows_ in enumerate(of_bucket) for row in rows_}
    samplers = [BucketBatchSampler(of_bucket, sizes, rank=rank) for rank in range(groups)]

    drawn: Counter[int] = Counter()
    samples: list[int] = []  # of each step
    most: list[int] = []  # tokens of the slowest process, in each micro-batch
    computed = 0
    while drawn.total() < rows:
        before, step = drawn.total(), len(samples)
        for number in range(step * micro_steps, (step + 1) * micro_steps):
            loads = []
            for sampler in samplers:
                taken = [draw.row for draw in sampler.micro_batch(number)]
                drawn.update(taken)
                loads += process_tokens([BUCKETS[owner[row]] for row in taken], sequence_parallel)
            computed += sum(loads)
            most.append(max(loads))
        samples.append(drawn.total() - before)
    second = drawn.copy()
    for step in count(len(samples)):
        if second.total() >= 2 * rows:
            break
        second.update(draw.row for draw in samplers[0].batch(step))
    full = [tokens for tokens in most if tokens]
    return Simulation(
        steps=len(samples),
        samples=(min(samples), fmean(samples), max(samples)),
        passes=len(full) / len(samples),
        tokens=(min(full), fmean(full), max(full)),
        idle=1 - computed / (gpus * sum(most)),
        fixed=None if batch_tokens else 1 - batch / (groups * -(-batch // groups)),
        waiting=rows - len(drawn),
        dropped=rows - len(second),
    )


def process_tokens(samples: Sequence[Bucket], processes: int) -> list[int]:
    """Tokens of each process of a group that shares these samples: sources and targets are split one by one."""
    halves = [split_sizes(LatentGrid().tokens(*bucket), processes) for bucket in samples]
    return [2 * sum(half[process] for half in halves) for process in range(processes)]


HEAD = ("GPUs", "SP", "batch", "passes", "samples per step", "tokens of a process at once", "idle", "if fixed")
HEAD += ("waiting", "dropped")


def row(gpus: int, size: int, wanted: str, result: Simulation) -> tuple[str, ...]:
    """Cells of a table under `HEAD`."""

    def spread(low: float, mean: float, high: float) -> str:
        return f"{low}" if low == high else f"{low} to {high} ({mean:.1f})"

    fixed = "" if result.fixed is None else f"{result.fixed:.1%}"
    cells = (f"{result.passes:.2f}", spread(*result.samples), spread(*result.tokens), f"{result.idle:.2%}", fixed)
    return (f"{gpus}", f"{size}", wanted, *cells, f"{result.waiting}", f"{result.dropped}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--sequence-parallel", type=int, nargs="+", default=[1, 8], help="sizes of the groups")
    parser.add_argument("--batch", type=int, nargs="+", default=[12, 64], help="samples of a step")
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[64 * 57_600], help="tokens of a step instead")
    parser.add_argument("--micro-steps", type=int, default=1, help="accumulate_grad_batches")
    parser.add_argument("--micro-tokens", type=int, help="tokens of a group at once, at most")
    parser.add_argument("--rows", type=int, default=ROWS)
    args = parser.parse_args()
    rows, refused = [], []
    for size in args.sequence_parallel:
        asked = [(batch, None, f"{batch} samples") for batch in args.batch]
        asked += [(1, tokens, f"{tokens} tokens") for tokens in args.batch_tokens]
        for batch, tokens, wanted in asked:
            try:
                result = simulate(args.gpus, size, batch, args.micro_steps, tokens, args.micro_tokens, args.rows)
            except ValueError as error:
                refused.append(f"{args.gpus} GPUs, SP {size}, {wanted}: {error}")
            else:
                rows.append(row(args.gpus, size, wanted, result))
    print(f"{args.rows} rows, {args.micro_steps} micro-steps per step; means in brackets.\n")
    print(table(HEAD, rows))
    if refused:
        print("\nRefused:", *refused, sep="\n")


if __name__ == "__main__":
    main()
