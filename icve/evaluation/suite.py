"""Suites of metrics: a YAML list of them, run over the results of `icve edit`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from icve.data.media.video_stream import VideoError
from icve.editing.editors import first_sentence
from icve.editing.results import ResultLog, file_identity
from icve.evaluation.edit_frames import EditFrames
from icve.evaluation.edits import Edit
from icve.evaluation.metrics.metric import NEEDS, TEXTS, Figure, Metric
from icve.runtime.class_lists import build_classes, read_class_list, shipped_file
from icve.runtime.precision import whole_float32

COLUMNS = ("id", "source", "edit_type", "instruction", "edited", "error")  # of a row, before its figures


class Suite(NamedTuple):
    """Metrics, and for each its class path and all its options (``entries``)."""

    metrics: list[Metric]
    entries: list[dict[str, Any]]

    def key(self) -> str:
        """Hash of all that a figure depends on beside the edit: metrics, options, and the files that options name."""
        named = [value for entry in self.entries for value in entry["init_args"].values() if isinstance(value, str)]
        folders = [Path(value) for value in named if Path(value).exists()]
        files = [file for path in folders for file in ([path] if path.is_file() else sorted(path.iterdir()))]
        return _hash([self.entries, [file_identity(file) for file in files]])

    def better(self, figure: str) -> str:
        """Which values of a figure are better: "lower" or "higher"."""
        starts = tuple(start for metric in self.metrics for start in metric.lower_is_better)
        return "lower" if figure.startswith(starts) else "higher"


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
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
    built = build_classes(content["metrics"], Metric, str(path))
    suite = Suite([metric for metric, _ in built], [entry for _, entry in built])
    for metric in suite.metrics:
        if unknown := set(metric.needs).difference(NEEDS):
            raise ValueError(
                f"{type(metric).__name__} needs {', '.join(sorted(unknown))}: there is {', '.join(NEEDS)}."
            )
    return suite


def measure(
    edits: Sequence[Edit], metrics: Sequence[Metric], progress: bool = True, log: ResultLog | None = None, key: str = ""
) -> list[dict[str, Any]]:
    """A row per edit, by :func:`measure_edit`.

    Args:
        edits: to be measured.
        metrics: of the suite.
        progress: show a bar with the time left.
        log: keeps every row as soon as it is there. Edits that it has, by the same metrics and of the same files, are
            not measured again, unless a metric failed.
        key: of the metrics and their options, as :meth:`Suite.key` gives it.

    Raises:
        OSError: the log cannot be written.
        ValueError: as :func:`measure_edit`.
    """
    known = log.read() if log is not None else {}
    rows = []
    with tqdm(edits, "measure", unit="edit", disable=not progress) as bar:
        for edit in bar:
            own = _key(edit, key)
            row = known.get(edit.id)
            if row is None or row.pop("key", None) != own:
                failed: list[Metric] = []
                row = measure_edit(edit, metrics, failed)
                if log is not None:
                    log.add(row | {"key": None if failed else own})
            rows.append(row)
    if log is not None:
        log.tidy()
    return rows


@whole_float32()
def measure_edit(edit: Edit, metrics: Sequence[Metric], failed: list[Metric] | None = None) -> dict[str, Any]:
    """`COLUMNS`, then the figures by name. Every file is decoded once for all metrics, some frames at a time.

    A figure that is a mean over parts of the video has their number as ``NAME.weight``; one with values of every frame
    has them as ``NAME.frames``. What cannot be measured is None, and ``error`` says why; other metrics do not suffer
    from it. Metrics that raised an error are added to ``failed``.

    Raises:
        ValueError: two metrics give a figure of the same name, or a name has a dot.
    """
    problems: list[str] = []
    failed = [] if failed is None else failed
    figures: dict[str, Any] = {}
    try:
        frames = EditFrames(edit, dict.fromkeys(need for metric in metrics for need in metric.needs))
        problems += _absences(frames, metrics)
        running = [metric for metric in metrics if not frames.absent.keys() & metric.needs]
        running = [m for m in running if _tried(m, problems, failed, m.reset, frames.info) is not _FAILED]
        if running:
            for chunk in frames.chunks(dict.fromkeys(need for metric in running for need in metric.needs)):
                for metric in list(running):
                    given = {need: chunk[need] for need in metric.needs if need in chunk}
                    if _tried(metric, problems, failed, metric.update, **given) is _FAILED:
                        running.remove(metric)
        for metric in running:
            found = _tried(metric, problems, failed, metric.compute)
            if found is not _FAILED:
                _add(figures, found)
    except (ValueError, OSError) as error:
        if isinstance(error, _Ambiguous):
            raise
        problems.append(_said(error))
    about = (edit.id, edit.source, edit.edit_type, edit.instruction, edit.edited and str(edit.edited))
    return dict(zip(COLUMNS, (*about, " ".join(dict.fromkeys(problems)) or None), strict=True)) | figures


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


def _tried(
    metric: Metric, problems: list[str], failed: list[Metric], call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """What a metric's method returns, or `_FAILED`: other edits and metrics go on, whatever anybody's metric does."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        problems.append(f"{type(metric).__name__}: {_said(error)}")
        failed.append(metric)
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


def _key(edit: Edit, key: str) -> str:
    """Hash of all that the row of an edit depends on."""
    paths = [path for path in {**edit.row, **edit.result}.values() if isinstance(path, str)]
    roots = [root for root in (edit.root, edit.folder) if root is not None]
    files = [root / path for root in roots for path in paths if (root / path).is_file()]
    return _hash([key, file_identity(edit.edited), [file_identity(file) for file in files], dict(edit.row)])


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _said(error: Exception) -> str:
    return error.reason if isinstance(error, VideoError) else first_sentence(error)
