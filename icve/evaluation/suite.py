"""Suites of metrics: a YAML list of them, run over the results of `icve edit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from icve.data.media.video_stream import VideoError
from icve.editing.editors import first_sentence
from icve.evaluation.edits import Edit
from icve.evaluation.metrics.metric import NEEDS, Metric
from icve.runtime.class_lists import build_classes, read_class_list, shipped_file

COLUMNS = ("id", "edit_type", "instruction", "edited", "error")  # of a row, before its figures


def load_suite(path: str | Path) -> list[Metric]:
    """The metrics of a YAML file, or of the shipped suite of that name: `metrics`, a list of `class_path` and
    `init_args`.

    Raises:
        ValueError: the file, a class or an option is wrong.
    """
    path = shipped_file(path, "configs/evaluation")
    content = read_class_list(path, "metrics", "suite of metrics")
    metrics = [metric for metric, _ in build_classes(content["metrics"], Metric, str(path))]
    for metric in metrics:
        if unknown := set(metric.needs).difference(NEEDS):
            raise ValueError(
                f"{type(metric).__name__} needs {', '.join(sorted(unknown))}: there is {', '.join(NEEDS)}."
            )
    return metrics


def measure(edits: Sequence[Edit], metrics: Sequence[Metric], progress: bool = True) -> list[dict[str, Any]]:
    """A row per edit: `COLUMNS`, then its figures by name. Every video is decoded once for all metrics.

    What cannot be measured is None, and ``error`` says why; other edits, and other metrics, do not suffer from it.

    Raises:
        ValueError: two metrics give a figure of the same name.
    """
    needs = {need for metric in metrics for need in metric.needs}
    return [_row(edit, metrics, needs) for edit in tqdm(edits, "measure", unit="edit", disable=not progress)]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over edits: ``edits`` (their number), ``figures`` (name -> ``mean``, and ``count`` of the edits that have
    it), and both by ``per_edit_type``. A mean over nothing is None."""
    kinds = sorted({row["edit_type"] for row in rows} - {""})
    by_type = {kind: _means([row for row in rows if row["edit_type"] == kind]) for kind in kinds}
    return _means(rows) | {"per_edit_type": by_type}


def figures_text(summary: Mapping[str, Any]) -> str:
    """A summary as an aligned table of plain text, a line per figure."""
    figures = summary["figures"]
    width = max(map(len, figures), default=0)
    lines = [f"{'':<{width}}{'mean':>12}{'of edits':>14}"]
    for name, figure in figures.items():
        mean = "-" if figure["mean"] is None else f"{figure['mean']:.4g}"
        share = f"{figure['count']} of {summary['edits']}"
        lines.append(f"{name:<{width}}{mean:>12}{share:>14}")
    return "\n".join(lines)


def _row(edit: Edit, metrics: Sequence[Metric], needs: set[str]) -> dict[str, Any]:
    problems: list[str] = []
    figures: dict[str, float | None] = {}
    inputs: dict[str, Any] = {}
    try:
        inputs = edit.load(needs)
    except (ValueError, OSError) as error:
        metrics, problems = (), [_said(error)]
    for metric in metrics:
        missing = [need for need in metric.needs if need not in inputs]
        if missing:
            problems.append(f"There is no {' or '.join(missing)} for {type(metric).__name__}.")
            continue
        try:
            found = metric(**{need: inputs[need] for need in metric.needs})
        except Exception as error:  # of anybody's metric: the other edits and metrics go on
            problems.append(f"{type(metric).__name__}: {_said(error)}")
            continue
        if twice := set(figures).intersection(found):
            raise ValueError(f"Two metrics of the suite give {', '.join(sorted(twice))}: leave one of them out.")
        figures.update(found)
    about = (edit.id, edit.edit_type, edit.instruction, edit.edited and str(edit.edited))
    return dict(zip(COLUMNS, (*about, " ".join(dict.fromkeys(problems)) or None), strict=True)) | figures


def _said(error: Exception) -> str:
    return error.reason if isinstance(error, VideoError) else first_sentence(error)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    figures = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        figures[name] = {"mean": sum(values) / len(values) if values else None, "count": len(values)}
    return {"edits": len(rows), "figures": figures}
