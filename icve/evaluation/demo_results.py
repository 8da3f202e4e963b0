"""What the demo reports: ``metrics.json``, ``report.html`` and the tables at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from icve.atomic import write_text
from icve.data.manifest import read_manifest
from icve.data.video import read_frames
from icve.evaluation.curves import read_curves
from icve.evaluation.report import Example, Stage, write_report
from icve.evaluation.synthetic import decode_clip, load_evaluation

_INTRODUCTION = (
    "A small in-context diffusion transformer learned to edit on this machine: first from unpaired clips of the same "
    "scene, then from paired edits. Every video below was made by rule, so the true result of every edit is known; "
    "its scene, and often its wording or its combination of words, was never seen in training."
)
_VERSIONS = ("icve", "torch", "lightning", "diffusers", "numpy")
_COLUMNS = {  # heading: figure
    "PSNR": "psnr",
    "copy": "psnr_copy",
    "codec": "psnr_codec",
    "inside": "psnr_inside",
    "copy ": "psnr_copy_inside",
    "outside": "psnr_outside",
    "copy  ": "psnr_copy_outside",
}


def write_results(
    output: Path,
    stages: Mapping[str, str],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    examples_per_type: int,
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``report.html`` from what the demo's stages left in ``output``.

    Args:
        output: holds a run folder per training stage, ``after_STAGE`` with its saved evaluation, and
            ``data/held_out/manifest.parquet``.
        stages: training stages in order, with their titles.
        settings: shown and kept as they are.
        seconds: time by kind of work.
        examples_per_type: edits of every type on the page.

    Returns:
        The metrics: figures under ``after_STAGE``, ``seconds_*``, ``settings`` and ``versions``.
    """
    evaluations = {stage: load_evaluation(output / f"after_{stage}") for stage in stages}
    metrics: dict[str, Any] = {f"after_{stage}": figures for stage, (figures, _) in evaluations.items()}
    metrics |= {f"seconds_{name}": value for name, value in seconds.items()}
    metrics |= {"settings": dict(settings), "versions": {name: metadata.version(name) for name in _VERSIONS}}
    write_text(output / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    shown = {"demo": {"settings": metrics["settings"], "versions": metrics["versions"]}}
    shown |= {f"{stage}/config.yaml": (output / stage / "config.yaml").read_text("utf-8") for stage in stages}
    write_report(
        output / "report.html",
        [_stage(output / stage, title, evaluations[stage][0]) for stage, title in stages.items()],
        _examples(output, {stages[stage]: rows for stage, (_, rows) in evaluations.items()}, examples_per_type),
        shown,
        seconds,
        title="In-context video editing: the demo",
        introduction=_INTRODUCTION,
        fps=settings["fps"],
    )
    return metrics


def figures_text(figures: Mapping[str, Any]) -> str:
    """The figures as an aligned table of plain text, one row per edit type and one for all edits."""
    lines = [f"{'':<11}{'edits':>6}{'success':>9}" + "".join(f"{heading.strip():>8}" for heading in _COLUMNS)]
    for kind, group in {**figures["per_edit_type"], "all": figures}.items():
        cells = ("–" if group[key] is None else f"{group[key]:.1f}" for key in _COLUMNS.values())
        lines.append(f"{kind:<11}{group['count']:>6}{group['success_ratio']:>9.0%}" + "".join(f"{c:>8}" for c in cells))
    return "\n".join(lines)


def _stage(run: Path, title: str, figures: Mapping[str, Any]) -> Stage:
    curves = read_curves(run)
    validation = {f"σ {tag.rpartition('_')[2]}": curve for tag, curve in curves.items() if "/loss_sigma_" in tag}
    training = {"loss": curves["train/loss"]} if "train/loss" in curves else {}
    return Stage(f"After {title}", figures, training, validation)


def _examples(output: Path, evaluations: Mapping[str, list[dict[str, Any]]], per_type: int) -> list[Example]:
    """The first edits of every type, whatever came of them: nothing is picked. Results of all stages side by side."""
    held_out = read_manifest(output / "data" / "held_out" / "manifest.parquet")
    by_id = {row["id"]: row for row in held_out}
    shown: dict[str, int] = {}
    examples = []
    for results in zip(*evaluations.values(), strict=True):
        final = results[-1]
        shown[final["edit_type"]] = shown.get(final["edit_type"], 0) + 1
        if shown[final["edit_type"]] > per_type:
            continue
        clips = {"source": decode_clip(by_id[final["id"]], "source", held_out.root)}
        for title, row in zip(evaluations, results, strict=True):
            clips[f"after {title.split()[0]}"] = read_frames(row["result_path"])
        clips["target"] = decode_clip(by_id[final["id"]], "target", held_out.root)
        nearest = _in_words(final["nearest"], by_id[final["id"]])
        examples.append(Example(final["instruction"], final["edit_type"], clips, final, nearest))
    return examples


def _in_words(nearest: str, row: Mapping[str, Any]) -> str:
    if nearest.startswith("distractor_"):
        return f"“{row['distractor_instructions'][int(nearest.removeprefix('distractor_'))]}”"
    return {"target": "the target", "source": "the source"}[nearest]
