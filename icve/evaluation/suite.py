"""Suites of metrics: a YAML list of them, run over the results of `icve edit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from icve.data.media.video_stream import VideoError
from icve.editing.editors import first_sentence
from icve.evaluation.edit_frames import EditFrames
from icve.evaluation.edits import Edit
from icve.evaluation.metrics.metric import NEEDS, TEXTS, Figure, Metric
from icve.runtime.class_lists import build_classes, read_class_list, shipped_file
from icve.runtime.precision import whole_float32

COLUMNS = ("id", "edit_type", "instruction", "edited", "error")  # of a row, before its figures


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> list[Metric]:
    """The metrics of a YAML file, or of the shipped suite of that name: `metrics`, a list of `class_path` and
    `init_args`.

    Args:
        path: of the file, or the name of a shipped one ("icve").
        overrides: ``name=value`` for entries of the file, as in ``models=/data/models``.

    Raises:
        ValueError: the file, an override, a class or an option is wrong, or the files of a model are not there.
    """
    path = shipped_file(path, "configs/evaluation")
    content = read_class_list(path, "metrics", "suite of metrics", overrides)
    metrics = [metric for metric, _ in build_classes(content["metrics"], Metric, str(path))]
    for metric in metrics:
        if unknown := set(metric.needs).difference(NEEDS):
            raise ValueError(
                f"{type(metric).__name__} needs {', '.join(sorted(unknown))}: there is {', '.join(NEEDS)}."
            )
    return metrics


def measure(edits: Sequence[Edit], metrics: Sequence[Metric], progress: bool = True) -> list[dict[str, Any]]:
    """A row per edit, by :func:`measure_edit`."""
    return [measure_edit(edit, metrics) for edit in tqdm(edits, "measure", unit="edit", disable=not progress)]


@whole_float32()
def measure_edit(edit: Edit, metrics: Sequence[Metric]) -> dict[str, Any]:
    """`COLUMNS`, then the figures by name. Every file is decoded once for all metrics, some frames at a time.

    A figure that is a mean over parts of the video has their number as ``NAME.weight``; one with values of every frame
    has them as ``NAME.frames``. What cannot be measured is None, and ``error`` says why; other metrics do not suffer
    from it.

    Raises:
        ValueError: two metrics give a figure of the same name, or a name has a dot.
    """
    problems: list[str] = []
    figures: dict[str, Any] = {}
    try:
        frames = EditFrames(edit, dict.fromkeys(need for metric in metrics for need in metric.needs))
        problems += _absences(frames, metrics)
        running = [metric for metric in metrics if not frames.absent.keys() & metric.needs]
        running = [m for m in running if _tried(m, problems, m.reset, frames.info) is not _FAILED]
        if running:
            for chunk in frames.chunks(dict.fromkeys(need for metric in running for need in metric.needs)):
                for metric in list(running):
                    given = {need: chunk[need] for need in metric.needs if need in chunk}
                    if _tried(metric, problems, metric.update, **given) is _FAILED:
                        running.remove(metric)
        for metric in running:
            found = _tried(metric, problems, metric.compute)
            if found is not _FAILED:
                _add(figures, found)
    except (ValueError, OSError) as error:
        if isinstance(error, _Ambiguous):
            raise
        problems.append(_said(error))
    about = (edit.id, edit.edit_type, edit.instruction, edit.edited and str(edit.edited))
    return dict(zip(COLUMNS, (*about, " ".join(dict.fromkeys(problems)) or None), strict=True)) | figures


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over edits: ``edits`` (their number), ``figures`` (by name), and both by ``per_edit_type``.

    A figure has its ``mean`` over edits and the ``count`` of edits that have it. One that is a mean over parts of the
    videos has ``pooled``, the mean over the parts of all videos, where long videos weigh more; one with values of every
    frame has ``by_frame``, the mean over frame numbers of the mean over the edits that have a frame of this number. A
    mean over nothing is None.
    """
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


_FAILED: Any = object()


class _Ambiguous(ValueError):
    """Two figures of one name: wrong for every edit, so that measuring stops."""


def _absences(frames: EditFrames, metrics: Sequence[Metric]) -> list[str]:
    """What is not there of the edit, and for which metrics, in sentences."""
    said = []
    for need, reason in frames.absent.items():
        names = dict.fromkeys(type(metric).__name__ for metric in metrics if need in metric.needs)
        advice = ": add the column to the reference" if need in TEXTS else ""
        said.append(reason or f"There is no {need} for {', '.join(names)}{advice}.")
    return said


def _tried(metric: Metric, problems: list[str], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a metric's method returns, or `_FAILED`: other edits and metrics go on, whatever anybody's metric does."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        problems.append(f"{type(metric).__name__}: {_said(error)}")
        return _FAILED


def _add(figures: dict[str, Any], found: Mapping[str, float | Figure | None]) -> None:
    if twice := set(figures).intersection(found):
        raise _Ambiguous(f"Two metrics of the suite give {', '.join(sorted(twice))}: leave one of them out.")
    for name, figure in found.items():
        if "." in name:
            raise _Ambiguous(f"The figure {name!r} has a dot in its name: rename it in its metric.")
        value = figure.value if isinstance(figure, Figure) else figure
        figures[name] = None if value is None or math.isnan(value) else float(value)
        if isinstance(figure, Figure):
            figures[f"{name}.weight"] = float(figure.weight)
            if figure.frames:
                figures[f"{name}.frames"] = [float(value) for value in figure.frames]


def _said(error: Exception) -> str:
    return error.reason if isinstance(error, VideoError) else first_sentence(error)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS and "." not in name)
    return {"edits": len(rows), "figures": {name: _mean(rows, name) for name in names}}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    rows = [row for row in rows if row.get(name) is not None]
    figure: dict[str, Any] = {"mean": _average([row[name] for row in rows]), "count": len(rows)}
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
