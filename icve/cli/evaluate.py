"""`icve eval`: how good edits are, measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icve.data.media.media_paths import refuse_foreign
from icve.runtime.printable import forgive_output, json_lines

EPILOG = """examples:
  icve synthesize pairs --seed 5000 --count 60 --output runs/truth
  icve edit --input runs/truth/manifest.parquet --output runs/out
  icve eval synthetic --results runs/out/results.jsonl --truth runs/truth

exit status: 0 done; 2 wrong arguments
"""


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve eval`."""
    parser = argparse.ArgumentParser(
        prog="icve eval",
        description="Measure edits. `synthetic` compares with exact targets: prints figures as JSON, writes a page.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=("synthetic",), help="what the edits are compared with")
    parser.add_argument("--results", required=True, help="results.jsonl of icve edit")
    parser.add_argument("--truth", required=True, help="folder (or manifest) of `icve synthesize pairs --split test`")
    parser.add_argument("--model", help="model whose codec is the reference (default: the one that edited)")
    parser.add_argument("--report", help="page to write (default: evaluation.html beside the results)")
    parser.add_argument("--examples", type=int, default=6, help="edits of every type on the page (default: 6)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve eval`; returns the exit status."""
    forgive_output()
    arguments = build_parser().parse_args(argv)
    try:
        refuse_foreign([arguments.results, arguments.truth, arguments.model, arguments.report])
        paths = Path(arguments.results), Path(arguments.truth)
        figures = evaluate_synthetic(*paths, arguments.model, arguments.report, arguments.examples)
    except (ValueError, FileNotFoundError) as error:
        print(f"icve eval: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=2, allow_nan=False))
    return 0


def evaluate_synthetic(
    results: Path, truth: Path, model: str | None = None, report: str | None = None, examples: int = 6
) -> dict[str, Any]:
    """Compare the results of `icve edit` with the true targets of a synthetic test set.

    An edit is found among the results by its id, else by its source's file name and its instruction; one that failed
    or is missing counts as no success.

    Args:
        results: ``results.jsonl``, beside the edited videos.
        truth: folder or manifest of the test set.
        model: model folder whose codec gives ``psnr_codec``; None takes the one named in the results.
        report: page to write; None is ``evaluation.html`` beside the results.
        examples: edits of every type on the page.

    Returns:
        the figures of the demo.

    Raises:
        FileNotFoundError, ValueError: something is not there or does not fit together.
    """
    from icve.editing.editors import resolve_model_folder, shipped_editor
    from icve.editing.results import ResultLog
    from icve.evaluation.demo_results import held_out_examples
    from icve.evaluation.report import Section, write_report
    from icve.evaluation.synthetic import evaluate

    if not results.is_file():
        raise FileNotFoundError(f"There are no results at {results}: icve edit writes results.jsonl into its output.")
    manifest = truth / "manifest.parquet" if truth.is_dir() and (truth / "manifest.parquet").is_file() else truth
    rows = ResultLog(results.parent).read() if results.name == "results.jsonl" else _read(results)
    given, settings = match_results(rows, manifest, results.parent)
    folder = resolve_model_folder(model or settings.get("model") or shipped_editor())
    evaluation = evaluate(given, manifest, codec=load_codec(folder))
    seconds = sum(row["seconds"] for row in rows.values() if row["status"] == "ok")
    figures = evaluation.figures | {
        "seconds_edit": round(seconds, 3),
        "seconds_per_edit": round(seconds / max(1, len(evaluation.results)), 4),
    }
    paths = {row["id"]: row | {"result_path": str(given[row["id"]])} for row in evaluation.edits if row["id"] in given}
    write_report(
        report or results.with_name("evaluation.html"),
        [Section("Figures", figures)],
        held_out_examples(manifest, {"edited": paths}, examples),
        {"settings": settings, "figures": figures},
        {},
        title="Edits against their true targets",
        heading="Edits",
    )
    return figures


def match_results(
    rows: Mapping[str, Mapping[str, Any]], manifest: Path, folder: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Videos of the results by id of the test manifest, and the settings they were made with."""
    from icve.data.manifest import read_manifest

    by_words = {(Path(row["source"]).name, row["instruction"]): row for row in rows.values()}
    given: dict[str, Path] = {}
    settings: dict[str, Any] = {}
    for row in read_manifest(manifest):
        found = rows.get(row["id"]) or by_words.get((Path(row["source_path"] or "").name, row["instruction"]))
        if found is not None and found["status"] == "ok" and (folder / found["output"]).is_file():
            given[row["id"]] = folder / found["output"]
            settings = settings or found["settings"]
    return given, settings


def load_codec(folder: Path) -> Any:
    """The codec of a model folder alone."""
    from diffusers.utils import logging

    from icve.editing.pipeline import EditPipeline

    logging.disable_progress_bar()  # of diffusers, for every folder it opens
    return EditPipeline.from_pretrained(folder, transformer=None, text_encoder=None, scheduler=None).codec


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for number, line in enumerate(json_lines(path), 1):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Line {number} of {path} is no result of icve edit.") from error
    return rows
