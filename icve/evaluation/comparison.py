"""Editors compared by what a suite measured of each: differences of the same edits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from icve.evaluation.intervals import cluster_bootstrap
from icve.evaluation.summary import figure_names
from icve.evaluation.tables import MISSING, Table, number, number_range

METRICS = "metrics.parquet"
SUMMARY = "metrics.json"


@dataclass(frozen=True)
class Measured:
    """What `icve eval run` left of one editor.

    Attributes:
        name: that tells it from others.
        rows: by what edits are matched by: the file name of their source and their instruction.
        summary: content of ``metrics.json``.
    """

    name: str
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    summary: Mapping[str, Any]


def read_measured(folders: Sequence[str]) -> list[Measured]:
    """What `icve eval run` wrote into folders, each as ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        ValueError, OSError: one has no figures, two have one name, or they were measured by different metrics.
    """
    measured = []
    for text in folders:
        label, equals, path = text.partition("=")
        folder = Path(path if equals and not Path(text).exists() else text)
        name = label if str(folder) != text else folder.resolve().name
        if not (folder / METRICS).is_file() or not (folder / SUMMARY).is_file():
            raise ValueError(f"There are no figures in {folder}: `icve eval run SUITE --results …` writes them.")
        rows = parquet.read_table(folder / METRICS).to_pylist()
        by_edit = {(Path(row["source"]).name, row["instruction"]): row for row in rows}
        measured.append(Measured(name, by_edit, json.loads((folder / SUMMARY).read_text(encoding="utf-8"))))
    names = [each.name for each in measured]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"Two folders are called {', '.join(sorted(twice))}: name them, as in before=runs/a after=runs/b."
        )
    for other in measured[1:]:
        if other.summary["suite"] != measured[0].summary["suite"]:
            raise ValueError(
                f"{measured[0].name} and {other.name} were measured by different metrics or options: "
                "run icve eval run with the same suite on both."
            )
    return measured


def compare(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """For every figure and every two editors: ``figure``, ``better`` ("lower" or "higher"), ``first`` and ``second``
    (names of the editors), ``edits`` (that have the figure of both), the ``means`` of both over these edits, the mean
    ``difference`` (second less first) with its 95 % ``interval``, and ``wins``, the share of edits of which the second
    is better (an equal figure is half a win), with ``wins_interval``. Intervals take edits of one video as one cluster;
    they are None for a single one.

    Raises:
        ValueError: two editors have no edit in common.
    """
    found = []
    for first, second in combinations(measured, 2):
        common = [key for key in first.rows if key in second.rows]
        if not common:
            raise ValueError(f"{first.name} and {second.name} have no edit in common (source and instruction).")
        for name, figure in first.summary["figures"].items():
            pairs = [
                (before, after, first.rows[key]["source"])
                for key in common
                if (before := first.rows[key].get(name)) is not None
                and (after := second.rows[key].get(name)) is not None
            ]
            found.append(_compared(name, figure["better"], first.name, second.name, pairs))
    return found


def comparison_table(compared: Sequence[Mapping[str, Any]]) -> Table:
    """A line for every figure and two editors."""
    headings = ["figure", "better", "first", "second", "mean", "mean", "second less first", "95 % interval"]
    rows = [
        [
            *(
                row["figure"],
                row["better"],
                row["first"],
                row["second"],
                number(row["means"][0]),
                number(row["means"][1]),
            ),
            *(number(row["difference"]), number_range(row["interval"])),
            *(_share(row["wins"]), MISSING if (of := row["wins_interval"]) is None else " to ".join(map(_share, of))),
            str(row["edits"]),
        ]
        for row in compared
    ]
    return Table([*headings, "second wins", "95 % interval", "edits"], rows)


def differences(first: Measured, second: Measured) -> dict[tuple[str, str], dict[str, float]]:
    """How much better the second one is, in each figure of each edit of both; below zero where it is worse."""
    better = {name: figure["better"] for name, figure in first.summary["figures"].items()}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key in first.rows:
        if key in second.rows:
            before, after = first.rows[key], second.rows[key]
            names = [name for name in figure_names([before]) if before[name] is not None]
            found[key] = {
                name: (after[name] - before[name]) * (-1 if better[name] == "lower" else 1)
                for name in names
                if after.get(name) is not None
            }
    return found


def _compared(
    name: str, better: str, first: str, second: str, pairs: Sequence[tuple[float, float, str]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"figure": name, "better": better, "first": first, "second": second, "edits": len(pairs)}
    row |= {"means": (None, None), "difference": None, "interval": None, "wins": None, "wins_interval": None}
    if pairs:
        before, after, clusters = zip(*pairs, strict=True)
        changes = [b - a for a, b in zip(before, after, strict=True)]
        sign = -1 if better == "lower" else 1
        wins = [0.5 if change == 0 else float(change * sign > 0) for change in changes]
        count = len(pairs)
        row["means"] = (sum(before) / count, sum(after) / count)
        row |= {"difference": sum(changes) / count, "interval": cluster_bootstrap(changes, clusters)}
        row |= {"wins": sum(wins) / count, "wins_interval": cluster_bootstrap(wins, clusters)}
    return row


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"
