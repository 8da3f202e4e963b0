"""Training curves: read from a run's TensorBoard event files or CSV log, drawn as inline SVG.

The SVG refers to CSS classes and variables only (``curve-0`` … and ``--ink``), so that it follows the page's light or
dark colours, and to nothing outside the page.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from icve.evaluation.templates import render

Curve = list[tuple[int, float]]
"""(step, value) in ascending steps; values may be non-finite as logged."""

PALETTE_SIZE = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 546, 12, 224  # of the curves, in a picture of 560 x 264


def read_curves(run: str | Path) -> dict[str, Curve]:
    """All scalars logged anywhere under a run folder, by tag.

    Reads TensorBoard event files and Lightning's ``metrics.csv``. A resumed run repeats the steps since its last
    checkpoint; the later value stands. Raises FileNotFoundError when the folder holds neither.
    """
    run = Path(run)
    logs = [
        read(path)
        for name, read in (("events.out.tfevents.*", _read_events), ("metrics.csv", _read_csv))
        for path in sorted(run.rglob(name), key=lambda path: path.stat().st_mtime_ns)
    ]
    if not logs:
        raise FileNotFoundError(f"{run} holds no training log (TensorBoard events, metrics.csv): train into it first.")
    merged: dict[str, dict[int, float]] = {}
    for log in logs:
        for tag, curve in log.items():
            merged.setdefault(tag, {}).update(curve)
    return {tag: sorted(points.items()) for tag, points in merged.items()}


def smooth(curve: Curve, windows: int = 25) -> Curve:
    """Mean over a window of 1/``windows`` of the curve around each point, cut off at the ends; finite values only."""
    finite = [(step, value) for step, value in curve if math.isfinite(value)]
    reach = len(finite) // (2 * windows)
    sums = [0.0, *itertools.accumulate(value for _, value in finite)]
    smoothed = []
    for index, (step, _) in enumerate(finite):
        first, end = max(index - reach, 0), min(index + reach + 1, len(finite))
        smoothed.append((step, (sums[end] - sums[first]) / (end - first)))
    return smoothed


def curve_chart(curves: Mapping[str, Curve], title: str, smoothed: bool = False) -> Markup:
    """SVG line chart of up to six named curves over steps; with ``smoothed``, the raw values stand faint behind."""
    named = {name: [(s, v) for s, v in curve if math.isfinite(v)] for name, curve in curves.items()}
    named = {name: curve for name, curve in list(named.items())[:PALETTE_SIZE] if curve}
    if not named:
        return Markup('<p class="absent">{}: no finite value was logged.</p>').format(title)
    low, high = _value_range([value for curve in named.values() for _, value in curve])
    first = min(curve[0][0] for curve in named.values())
    last = max(first + 1, *(curve[-1][0] for curve in named.values()))
    x_of, y_of = _scale(first, last, _LEFT, _RIGHT), _scale(low, high, _BOTTOM, _TOP)
    lines = []
    for name, curve in named.items():
        line = smooth(curve) if smoothed else curve
        step, value = line[-1]
        end = {"x": x_of(step), "y": y_of(value), "last": value, "count": len(line)}
        lines.append({"name": name, "raw": _path(curve, x_of, y_of), "path": _path(line, x_of, y_of), **end})
    return render(
        "curve_chart.html.jinja",
        rows=[(tick, y_of(tick)) for tick in nice_ticks(low, high, 5)],
        columns=[(tick, x_of(tick)) for tick in nice_ticks(first, last, 6)],
        title=title,
        lines=lines,
        smoothed=smoothed,
        left=_LEFT,
        right=_RIGHT,
        bottom=_BOTTOM,
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) within [low, high]."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(start, math.floor(high / step + 1e-9) + 1)]


def _read_events(path: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    log.Reload()
    return {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}


def _read_csv(path: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for tag, text in row.items():
                if tag not in ("step", "epoch") and text:
                    curves.setdefault(tag, {})[int(row["step"])] = float(text)
    return curves


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold 99 % of the values: the first steps' losses must not flatten the rest of the curve."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[math.ceil(0.99 * (len(ordered) - 1))]
    margin = 0.04 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return low - margin, high + margin


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (min(max(value, low), high) - low) / (high - low) * (end - start)


def _path(curve: Curve, x_of, y_of, limit: int = 1000) -> str:
    """SVG path through at most about ``limit`` of the points: more would only make the page heavy."""
    stride = max(1, len(curve) // limit)
    points = curve[::stride] if curve[-1] in curve[::stride] else [*curve[::stride], curve[-1]]
    return "M" + "L".join(f"{x_of(step):.1f} {y_of(value):.1f}" for step, value in points)
