"""What the demo reports: ``metrics.json``, ``report.html`` and the tables at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from icve.data.manifest import read_manifest
from icve.evaluation.curves import read_curves
from icve.evaluation.edits import read_edited
from icve.evaluation.report import Example, Section, write_report
from icve.evaluation.synthetic import decode_clip, load_evaluation
from icve.evaluation.templates import decibels
from icve.runtime.atomic import write_text

_INTRODUCTION = (
    "A small in-context diffusion transformer learned to edit on this machine: first from unpaired clips of the same "
    "scene, then from paired edits. Every video below was made by rule, so the true result of every edit is known; "
    "its scene, and often its wording or its combination of words, was never seen in training."
)
_VERSIONS = ("icve", "torch", "lightning", "diffusers", "numpy")
_HEADINGS = ("PSNR", "copy", "codec", "inside", "copy", "outside", "copy")
_COLUMNS = ["psnr", "psnr_copy", "psnr_codec", "psnr_inside", "psnr_copy_inside", "psnr_outside", "psnr_copy_outside"]


def write_results(
    output: Path,
    stages: Mapping[str, str],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    examples_per_type: int,
    more_examples: Sequence[Example] = (),
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``report.html`` from what the demo's stages left in ``output``.

    Args:
        output: holds a run folder per training stage, ``after_STAGE`` with its saved evaluation, and
            ``data/held_out/manifest.parquet``.
        stages: training stages in order, with their titles.
        settings: shown and kept as they are.
        seconds: time by kind of work.
        examples_per_type: edits of every type on the page.
        more_examples: shown after them.

    Returns:
        The metrics: figures under ``after_STAGE``, ``seconds_*``, ``settings`` and ``versions``.
    """
    evaluations = {stage: load_evaluation(output / f"after_{stage}") for stage in stages}
    circumstances = {"settings": dict(settings), "versions": {name: metadata.version(name) for name in _VERSIONS}}
    metrics: dict[str, Any] = {f"after_{stage}": figures for stage, (figures, _) in evaluations.items()}
    metrics |= {f"seconds_{name}": value for name, value in seconds.items()} | circumstances
    write_text(output / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    shown: dict[str, Any] = {"demo": circumstances}
    shown |= {f"{stage}/config.yaml": (output / stage / "config.yaml").read_text("utf-8") for stage in stages}
    by_stage = {
        f"after {stages[stage].split()[0]}": {row["id"]: row for row in rows}
        for stage, (_, rows) in evaluations.items()
    }
    examples = held_out_examples(output / "data" / "held_out" / "manifest.parquet", by_stage, examples_per_type)
    write_report(
        output / "report.html",
        [_stage(output / stage, title, evaluations[stage][0]) for stage, title in stages.items()],
        [*examples, *more_examples],
        shown,
        seconds,
        title="In-context video editing: the demo",
        introduction=_INTRODUCTION,
        fps=settings["fps"],
    )
    return metrics


def figures_text(figures: Mapping[str, Any]) -> str:
    """The figures as an aligned table of plain text, one row per edit type and one for all edits."""
    headings = "".join(f"{heading:>8}" for heading in _HEADINGS)
    lines = [f"{'':<11}{'edits':>6}{'success':>9}{'95 % interval':>15}{headings}"]
    for kind, group in {**figures["per_edit_type"], "all": figures}.items():
        cells = "".join(f"{decibels(group[key]):>8}" for key in _COLUMNS)
        low, high = group["success_interval"]
        shares = f"{group['success_ratio']:>9.0%}{f'{low:.0%} to {high:.0%}':>15}"
        lines.append(f"{kind:<11}{group['count']:>6}{shares}{cells}")
    return "\n".join(lines)


def _stage(run: Path, title: str, figures: Mapping[str, Any]) -> Section:
    curves = read_curves(run)
    validation = {f"σ {tag.rpartition('_')[2]}": curve for tag, curve in curves.items() if "/loss_sigma_" in tag}
    if "val/loss" in curves:
        validation["weighted as in training"] = curves["val/loss"]
    training = {"loss": curves["train/loss"]} if "train/loss" in curves else {}
    return Section(f"After {title}", figures, training, validation)


def held_out_examples(
    manifest: Path, evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]], per_type: int
) -> list[Example]:
    """The first edits of every type, whatever came of them: nothing is picked.

    Args:
        manifest: of the test set.
        evaluations: by title of what edited, by id of the edit: its row of figures with ``result_path``. The figures
            shown are the last one's.
        per_type: edits of every type.
    """
    held_out = read_manifest(manifest)
    shown: dict[str, int] = {}
    examples = []
    for row in held_out:
        results = {title: rows[row["id"]] for title, rows in evaluations.items() if row["id"] in rows}
        if len(results) < len(evaluations) or shown.setdefault(row["edit_type"], 0) == per_type:
            continue
        shown[row["edit_type"]] += 1
        clips = {"source": decode_clip(row, "source", held_out.root)}
        clips |= {title: read_edited(Path(result["result_path"])) for title, result in results.items()}
        clips["target"] = decode_clip(row, "target", held_out.root)
        final = list(results.values())[-1]
        nearest = {"nearest to": in_words(final["nearest"], row)}
        examples.append(Example(row["instruction"], row["edit_type"], clips, final, nearest, row.get("fps")))
    return examples


def in_words(nearest: str, row: Mapping[str, Any]) -> str:
    """What ``measure_edit`` found a result nearest to, for a reader."""
    if nearest.startswith("distractor_"):
        return f"“{row['distractor_instructions'][int(nearest.removeprefix('distractor_'))]}”"
    return {"target": "the target", "source": "the source", "missing": "nothing: it is missing"}[nearest]
