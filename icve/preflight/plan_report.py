"""A plan as tables for a terminal or a document (Markdown), and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from icve.models.recompute import MODES
from icve.preflight.fits import Machine, Option, Run, Sized, best, describe, evaluate, gib, nearest, options, remedies
from icve.preflight.layouts import Memory, in_words

DAY = 86_400
_PARTS = [field.name for field in fields(Memory)]


class Result:
    """A run on some GPUs, with every layout of these strategies.

    Attributes:
        options: every layout.
        chosen: the best of them that fits, or None.
        simplest: where one starts: the first strategy, no sequence parallelism if the batch allows that, as configured.
        remedies: what helps where none fits.
        shown: the chosen option, or the one that needs least memory.
        gpus: that are used: some stay idle where the batch cannot be divided among all.
        samples_per_second: that the data must deliver.
        days: of the run.
    """

    def __init__(self, run: Run, machine: Machine, strategies: Sequence[str]) -> None:
        self.run, self.machine = run, machine
        self.options = options(run, machine, strategies)
        self.chosen = best(self.options)
        first = self.options[0].layout
        self.simplest = evaluate(run, machine, replace(first, checkpointing=run.checkpointing))
        self.remedies = [] if self.chosen else remedies(run, machine, strategies)
        self.shown = self.chosen or min(self.options, key=lambda option: option.most)
        self.gpus = self.shown.layout.gpus
        self.samples_per_second = run.batch / self.shown.step_seconds
        self.days = run.steps * self.shown.step_seconds / DAY

    @property
    def settings(self) -> str:
        """What the layout means for `icve fit`."""
        option, layout = self.shown, self.shown.layout
        kind = "DeepSpeedUlyssesStrategy" if layout.zero else "DDPUlyssesStrategy"
        strategy = f"--trainer.strategy icve.training.distributed.strategies.{kind} "
        if layout.zero:
            strategy += f"--trainer.strategy.init_args.stage {layout.zero} "
        return (
            f"{strategy}--trainer.strategy.init_args.sequence_parallel_size {layout.sequence_parallel} "
            f"--data.init_args.batch_size {layout.groups * option.samples} "
            f"--trainer.accumulate_grad_batches {option.micro_steps} "
            f"--model.checkpointing.mode {layout.checkpointing.mode} "
            f"--model.checkpointing.every {layout.checkpointing.every}"
        )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(result: Result) -> str:
    """The whole plan."""
    run, machine, option = result.run, result.machine, result.shown
    nodes = max(1.0, result.gpus / machine.node)
    billions = f"{run.model.parameters / 1e9:.2f} B parameters{' of an adapter' if run.model.adapted else ''}"
    parts = [
        f"Stage {run.stage}: {billions}, {run.steps} steps of {run.batch} samples, on "
        f"{machine.gpus} GPUs with {gib(machine.memory):g} GiB that reach {machine.flops / 1e12:.0f} TFLOP/s.",
        "One sample (PFLOP, and what checkpointing computes again; GiB that wait for the backward pass by its mode):",
        _samples(run),
        "GiB per GPU in the bucket that needs most, with as many samples at once as fit; +x is x GiB too many:",
        _matrix(result),
        verdict(result),
        f"GiB per GPU with {describe(option.layout)}; {_count(option.layout.groups, 'group')} of GPUs, each with "
        f"{_count(option.samples, 'sample')} at once, {_count(option.micro_steps, 'pass', 'es')} per step:",
        _buckets(result),
        f"The run: {result.days:.1f} days, {result.days * result.gpus:.0f} GPU-days, "
        f"{result.shown.step_seconds:.1f} s per step on average.",
        f"Data: {_rate(result.samples_per_second)}, {_rate(result.samples_per_second / nodes)} on each node.",
        f"Settings: {result.settings}",
    ]
    return "\n\n".join(parts)


def compare(results: Sequence[Result]) -> str:
    """One line for each number of GPUs."""
    rows = []
    for result in results:
        option, gpus = result.shown, result.machine.gpus
        used = gpus if result.gpus == gpus else f"{result.gpus} of {gpus}"
        passes = f"{option.layout.groups} × {option.samples} × {option.micro_steps}"
        needed = f"{gib(option.most):.0f}{'' if option.fits else ' (does not fit)'}"
        time = f"{min(option.seconds):.1f}–{max(option.seconds):.1f}"
        days = (f"{result.days:.1f}", f"{result.days * result.gpus:.0f}")
        rows.append((result.run.stage, used, describe(option.layout), passes, needed, time, *days))
    head = ("stage", "GPUs", "layout", "groups × samples × passes", "GiB per GPU", "s per step", "days", "GPU-days")
    return table(head, rows)


def verdict(result: Result) -> str:
    """Which layout fits, and what to change in the one a run would start from."""
    machine, chosen, start = result.machine, result.chosen, result.simplest
    lines = []
    if result.gpus < machine.gpus:
        lines.append(
            f"A batch of {result.run.batch} cannot be divided among {machine.gpus} GPUs (groups of at most "
            f"{machine.node} that divide the {result.run.model.heads} heads): {result.gpus} are used."
        )
    if not start.fits:
        over = gib(start.most - machine.memory)
        change = nearest(start, result.options)
        help_ = f"; change to {', '.join(change)}" if change else ""
        lines.append(f"{describe(start.layout)} does not fit, by {over:.1f} GiB{help_}.")
    if chosen is None:
        lines.append("No layout fits. It would with " + ", or with ".join(result.remedies) + ".")
    else:
        spare = gib(machine.memory - chosen.most)
        lines.append(f"{describe(chosen.layout)} is the fastest that fits, with {spare:.1f} GiB to spare.")
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """Everything that was counted and computed; bytes, FLOPs and seconds."""
    run = result.run
    return {
        "stage": run.stage,
        "model": asdict(run.model),
        "batch": run.batch,
        "steps": run.steps,
        "machine": asdict(result.machine),
        "buckets": [_sized(sized) for sized in run.buckets],
        "layouts": [_option(result, option) for option in result.options],
        "chosen": None if result.chosen is None else _option(result, result.chosen),
        "remedies": result.remedies,
        "verdict": verdict(result),
        "settings": result.settings,
        "samples_per_second": result.samples_per_second,
        "days": result.days,
        "gpu_days": result.days * result.gpus,
    }


def _sized(sized: Sized) -> dict[str, Any]:
    counts: dict[str, Any] = {mode: asdict(sized.measured.counts(mode)) for mode in MODES}
    sizes = {"bucket": sized.bucket, "tokens": sized.tokens, "share": sized.share}
    return sizes | counts | {"encoding": sized.encoding.flops(1)}


def _option(result: Result, option: Option) -> dict[str, Any]:
    values = asdict(option)
    how = option.layout.checkpointing
    return {
        **values.pop("layout"),
        "checkpointing": {"mode": how.mode, "every": how.every},
        **values,
        "missing": max(0.0, option.most - result.machine.memory),
        "change": [] if option.fits else nearest(option, result.options),
        "memory": [asdict(part) | {"total": part.total} for part in option.memory],
    }


def _samples(run: Run) -> str:
    rows = []
    for sized in run.buckets:
        none, selective, full = (sized.measured.counts(mode) for mode in MODES)
        numbers = (none.forward, none.backward, selective.recompute, full.recompute, sized.encoding.flops(1))
        flops = (f"{number / 1e15:.3g}" for number in numbers)
        saved = (f"{gib(counts.saved):.3g}" for counts in (none, selective, full))
        rows.append((sized.bucket, sized.tokens, *flops, *saved))
    head = ("bucket", "tokens", "forward", "backward", "selective again", "full again", "encoding", *MODES)
    return table(head, rows)


def _matrix(result: Result) -> str:
    """Rows strategy and checkpointing, columns sequence-parallel sizes."""
    sizes = sorted({option.layout.sequence_parallel for option in result.options})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for option in result.options:
        layout, over = option.layout, option.most - result.machine.memory
        if layout.checkpointing.every > 1 and layout.checkpointing != result.shown.layout.checkpointing:
            continue  # between the ones that are shown
        cell = f"{gib(option.most):.1f}" if option.fits else f"+{gib(over):.1f}"
        rows.setdefault((layout.strategy, in_words(layout.checkpointing)), {})[layout.sequence_parallel] = cell
    body = [
        (f"{strategy}, {kept}", *(cells.get(size, "") for size in sizes)) for (strategy, kept), cells in rows.items()
    ]
    return table(("layout", *(f"sequence parallel {size}" for size in sizes)), body)


def _buckets(result: Result) -> str:
    option = result.shown
    rows = []
    figures = zip(result.run.buckets, option.memory, option.communication, option.encoding, option.seconds, strict=True)
    for sized, part, sent, *seconds in figures:
        sizes = [f"{gib(getattr(part, field)):.1f}" for field in _PARTS]
        rows.append(
            (sized.bucket, *sizes, f"{gib(part.total):.1f}", f"{gib(sent):.0f}", *(f"{s:.1f}" for s in seconds))
        )
    buckets = table(("bucket", *_PARTS, "total", "sent per step", "s encoding", "s per step"), rows)
    if not (result.run.encode_ahead and any(option.encoding)):
        return buckets
    return (
        f"{buckets}\n\nEncoding is counted in full, though batches are encoded ahead (EncodeAhead): that takes the "
        "same GPUs' work, and can only fill the time in which they would wait. Its memory, beside the activations, is "
        "not counted."
    )


def _rate(samples: float) -> str:
    return f"{samples:.3g} samples per second"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
