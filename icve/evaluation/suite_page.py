"""Pages of a suite: its figures, and the best and worst edits of each of them, playing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icve.data.media.video import VideoError
from icve.evaluation.comparison import Measured, comparison_table, differences
from icve.evaluation.edit_report import thumbnail
from icve.evaluation.edits import Edit
from icve.evaluation.report import Example, Section, write_report
from icve.evaluation.summary import figure_names
from icve.evaluation.tables import summary_tables


def write_suite_page(
    path: Path,
    edits: Sequence[Edit],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    count: int = 3,
) -> Path:
    """Write the page of measured edits and return its path.

    Args:
        path: of the page.
        edits: that were measured.
        rows: of the same edits, by :func:`icve.evaluation.suite.measure`.
        summary: by :func:`icve.evaluation.summary.summarise`.
        count: of the best, and of the worst edits of each figure, which are shown.
    """
    names = figure_names(rows)
    values = [{name: row[name] for name in names if row.get(name) is not None} for row in rows]
    examples: list[Example] = []
    problems = {row["id"]: row["error"] for row in rows if row["error"]}
    for index in _extremes(values, count):
        edit = edits[index]
        _add(examples, problems, {"edited": edit}, values[index])
    lower = [name for name, figure in summary["figures"].items() if figure["better"] == "lower"]
    return write_report(
        path,
        *([Section("Figures", tables=summary_tables(summary))], examples),
        {"not measured in full": problems} if problems else {},
        {},
        title="Edits, measured",
        introduction=f"{summary['edits']} edits of {summary['sources']} videos. Intervals are of the mean, at 95 %, "
        "and take edits of one video as one cluster. A mean stands beside the number of edits that have the figure.",
        heading=f"The {count} best and worst edits of each figure",
        lower_is_better=lower,
    )


def write_comparison_page(
    path: Path,
    measured: Sequence[Measured],
    edits: Mapping[str, Sequence[Edit]],
    compared: Sequence[Mapping[str, Any]],
    count: int = 3,
) -> Path:
    """Write the page of editors that were compared, and return its path.

    Args:
        path: of the page.
        measured: of each editor.
        edits: of each editor, by its name; those that could not be found again are left out.
        compared: by :func:`icve.evaluation.comparison.compare`.
        count: of edits shown for each figure where the last editor beats the first by most, and as many where it loses.
    """
    first, last = measured[0], measured[-1]
    changes = differences(first, last)
    keys = list(changes)
    of_editor = {
        name: {(Path(edit.source).name, edit.instruction): edit for edit in each} for name, each in edits.items()
    }
    examples: list[Example] = []
    problems: dict[str, str] = {}
    for index in _extremes([changes[key] for key in keys], count):
        shown = {name: by_key[keys[index]] for name, by_key in of_editor.items() if keys[index] in by_key}
        if shown:
            _add(examples, problems, shown, changes[keys[index]])
    return write_report(
        path,
        *([Section("Differences", tables=[comparison_table(compared)])], examples),
        {"not shown": problems} if problems else {},
        {},
        title=" against ".join(each.name for each in measured),
        introduction="Differences are of the same edits. Intervals, at 95 %, take edits of one video as one cluster. "
        "Equal figures are half a win.",
        heading=f"Where {last.name} differs most from {first.name} (above zero: {last.name} is better)",
    )


def _extremes(values: Sequence[Mapping[str, float]], count: int) -> list[int]:
    """Numbers of the edits with the ``count`` lowest and highest values of each figure, in the order of the edits."""
    names = dict.fromkeys(name for each in values for name in each)
    chosen: set[int] = set()
    for name in names:
        ordered = sorted((index for index, each in enumerate(values) if name in each), key=lambda i: values[i][name])
        chosen.update(ordered[:count] + ordered[-count:] if count else [])
    return sorted(chosen)


def _add(
    examples: list[Example], problems: dict[str, str], shown: Mapping[str, Edit], values: Mapping[str, float]
) -> None:
    """Add an edit by one or several editors; or why it cannot be shown."""
    edit = next(iter(shown.values()))
    try:
        examples.append(_example(shown, values))
    except (VideoError, ValueError, OSError) as error:
        problems[edit.id] = str(error)


def _example(shown: Mapping[str, Edit], values: Mapping[str, float]) -> Example:
    edit = next(iter(shown.values()))
    row = edit.row
    source = edit.file(row["source_path"], "source")
    clips = {"source": thumbnail(source, row.get("source_start") or 0, row.get("source_frames"))}
    size = clips["source"].shape[1:3]
    clips |= {name: thumbnail(each.edited, size=size) for name, each in shown.items() if each.edited is not None}
    if row.get("target_path"):
        target = edit.file(row["target_path"], "target")
        clips["true target"] = thumbnail(target, row.get("target_start") or 0, row.get("target_frames"), size)
    frames = _shortest(clips.values())
    facts = {"id": edit.id}
    fps = edit.result.get("fps")
    clips = {name: clip[:frames] for name, clip in clips.items()}
    return Example(edit.instruction, edit.edit_type, clips, None, facts, fps, values)


def _shortest(clips: Iterable[Any]) -> int:
    return min(map(len, clips))
