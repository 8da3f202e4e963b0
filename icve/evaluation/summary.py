"""Figures of many edits as one: means, their intervals, and how many edits they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icve.evaluation.intervals import cluster_bootstrap
from icve.evaluation.suite import COLUMNS


def summarise(rows: Sequence[Mapping[str, Any]], better: Callable[[str], str] = lambda _: "higher") -> dict[str, Any]:
    """Means over edits: ``edits`` (their number), ``sources`` (number of videos that were edited), ``figures`` (by
    name), and the three ``per_edit_type``.

    A figure has its ``mean`` over edits, the ``count`` of edits that have it, the 95 % ``interval`` of the mean (edits
    of one video count as one cluster; None for a single video), and which values are ``better``. One that is a mean
    over parts of the videos has ``pooled``, the mean over the parts of all videos, where long videos weigh more; one
    with values of every frame has ``by_frame``, the mean over frame numbers of the mean over the edits that have a
    frame of this number. A mean over nothing is None.

    Args:
        rows: of :func:`icve.evaluation.suite.measure_edit`.
        better: "lower" or "higher", by the name of a figure.
    """
    kinds = sorted({row["edit_type"] for row in rows} - {""})
    by_type = {kind: _means([row for row in rows if row["edit_type"] == kind], better) for kind in kinds}
    return _means(rows, better) | {"per_edit_type": by_type}


def figure_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the figures of rows."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS and "." not in name))


def _means(rows: Sequence[Mapping[str, Any]], better: Callable[[str], str]) -> dict[str, Any]:
    figures = {name: _mean(rows, name) | {"better": better(name)} for name in figure_names(rows)}
    return {"edits": len(rows), "sources": len({row.get("source") for row in rows}), "figures": figures}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    rows = [row for row in rows if row.get(name) is not None]
    values = [row[name] for row in rows]
    figure: dict[str, Any] = {"mean": _average(values), "count": len(rows)}
    figure["interval"] = cluster_bootstrap(values, [row.get("source") for row in rows]) if rows else None
    weighted = [(row[name] * weight, weight) for row in rows if (weight := row.get(f"{name}.weight"))]
    if weighted:
        figure["pooled"] = sum(total for total, _ in weighted) / sum(weight for _, weight in weighted)
    frames = [row[f"{name}.frames"] for row in rows if row.get(f"{name}.frames")]
    if frames:
        numbers = range(max(map(len, frames)))
        by_number = ([each[n] for each in frames if n < len(each)] for n in numbers)
        figure["by_frame"] = sum(sum(values) / len(values) for values in by_number) / len(numbers)
    return figure


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
