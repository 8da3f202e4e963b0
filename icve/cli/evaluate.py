"""`icve eval`: how good edits are, measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icve.data.media.media_paths import refuse_foreign
from icve.runtime.printable import forgive_output
from icve.runtime.storage.remote_path import as_path, refuse_url

if TYPE_CHECKING:
    from icve.evaluation.edits import Edit

EPILOG = """examples:
  icve synthesize pairs --seed 5000 --count 60 --output runs/truth
  icve edit --input runs/truth/manifest.parquet --output runs/out
  icve eval synthetic --results runs/out/results.jsonl --truth runs/truth
  icve eval run preservation --results runs/out/results.jsonl --reference runs/truth --output runs/figures
  icve eval compare before=runs/figures after=runs/other_figures --output runs/comparison
  icve eval leakage data/clips.parquet data/test/ --hashes runs/hashes.parquet --output runs/leaks.json

exit status: 0 done; 2 wrong arguments; 3 some edits could not be measured, or some videos not read; 4 leaks were found
"""


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve eval`."""
    look: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EPILOG}
    parser = argparse.ArgumentParser(prog="icve eval", description="Measure edits.", **look)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    text = "compare with exact targets: print figures as JSON, write a page"
    synthetic = commands.add_parser("synthetic", help=text, description=f"{text.capitalize()}.", **look)
    synthetic.add_argument(
        "--truth", required=True, help="folder (or manifest) of `icve synthesize pairs --split test`"
    )
    synthetic.add_argument("--split", nargs="+", dest="splits", help="measure these splits alone (default: all)")
    synthetic.add_argument("--model", help="model whose codec is the reference (default: the one that edited)")
    synthetic.add_argument("--report", help="page to write (default: evaluation.html beside the results)")
    synthetic.add_argument("--examples", type=int, default=6, help="edits of every type on the page (default: 6)")

    text = "run a suite of metrics: print their means, write a row per edit and a page"
    run = commands.add_parser("run", help=text, description=f"{text.capitalize()}.", **look)
    run.add_argument(
        "suite", help="YAML file with a list of metrics, or a shipped one: icve, vbench, vera, preservation, layers"
    )
    run.add_argument("overrides", nargs="*", metavar="name=value", help="values of the YAML file, as in models=DIR")
    run.add_argument("--reference", help="manifest (or its folder) with source, target and mask of the edits")
    run.add_argument("--output", help="folder for tables and page (default: beside the results)")
    shown = "best and worst edits of each figure that the page shows"
    run.add_argument("--examples", type=int, default=3, help=f"number of {shown} (default: 3)")

    text = "compare editors that a suite was run on: differences of the same edits, with intervals"
    compare = commands.add_parser("compare", help=text, description=f"{text.capitalize()}.", **look)
    names = "folder of `icve eval run`; NAME=FOLDER names it in the tables"
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help=names)
    compare.add_argument("--output", default="comparison", help="folder for tables and page (default: comparison)")
    compare.add_argument("--examples", type=int, default=3, help="number of edits per figure on the page (default: 3)")

    text = "find test videos that are in training data: print a table"
    leakage = commands.add_parser("leakage", help=text, description=f"{text.capitalize()}.", **look)
    leakage.add_argument("train", help="manifest, folder of videos or video that is trained on; also a URL")
    leakage.add_argument("test", help="the same, of what is tested on")
    leakage.add_argument("--hashes", help="Parquet file that keeps hashes of frames, so that none is made twice")
    leakage.add_argument("--output", help="file for a row per match: .parquet, .jsonl or .json")
    leakage.add_argument("--workers", type=int, default=1, help="videos decoded side by side (default: 1)")
    synthetic.add_argument("--results", required=True, help="results.jsonl of icve edit")
    named = "by the reference's ids, or by its sources where each is edited once"
    run.add_argument(
        "--results", required=True, help=f"results.jsonl of icve edit, or a folder of videos named {named}"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve eval`; returns the exit status."""
    forgive_output()
    arguments = build_parser().parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name != "command"}
    try:
        refuse_foreign([value for value in options.values() if isinstance(value, str)])
        for name in ("results", "output", "report", "hashes"):
            refuse_url(f"--{name}", options.get(name) or "")
        commands: dict[str, Callable[..., int]] = {
            "run": run_suite,
            "compare": compare_suites,
            "synthetic": evaluate_synthetic,
            "leakage": find_leakage,
        }
        return commands[arguments.command](**options)
    except (ValueError, OSError) as error:
        print(f"icve eval: {error}", file=sys.stderr)
        return 2


def run_suite(
    suite: str,
    results: str,
    reference: str | None = None,
    output: str | None = None,
    examples: int = 3,
    overrides: Sequence[str] = (),
) -> int:
    """Measure the results of `icve edit` with the metrics of a suite.

    Writes ``metrics.parquet`` (a row per edit), ``metrics.json``, ``metrics.md``, ``metrics.tex`` and ``metrics.html``;
    ``metrics.jsonl`` has what was measured so far, which a second run does not measure again.

    Returns:
        The exit status: 0, or 3 where an edit could not be measured.

    Raises:
        ValueError, OSError: something is not there, is wrong, or cannot be written.
    """
    import pyarrow.parquet as parquet

    from icve.data.cells import to_table
    from icve.editing.results import ResultLog
    from icve.evaluation.comparison import METRICS, SUMMARY
    from icve.evaluation.suite import load_suite, measure
    from icve.evaluation.suite_page import write_suite_page
    from icve.evaluation.summary import summarise
    from icve.evaluation.tables import summary_tables
    from icve.runtime.atomic import whole_file, write_text

    of_suite = load_suite(suite, overrides)
    edits = _find_edits(results, reference)
    beside = Path(results) if Path(results).is_dir() else Path(results).parent
    folder = beside if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure(edits, of_suite.metrics, log=ResultLog(folder, "metrics"), key=of_suite.key())
    summary = summarise(rows, of_suite.better)
    about: dict[str, Any] = {"suite": of_suite.entries, "results": str(Path(results).resolve())}
    about["reference"] = None if reference is None else str(_manifest_path(reference).resolve())
    tables = summary_tables(summary)
    with whole_file(folder / METRICS) as temporary:
        parquet.write_table(to_table(rows), temporary)
    write_text(folder / SUMMARY, json.dumps(about | summary, indent=2, allow_nan=False) + "\n")
    write_text(folder / "metrics.md", "\n".join(table.markdown() for table in tables))
    write_text(folder / "metrics.tex", "\n".join(table.latex() for table in tables))
    page = write_suite_page(folder / "metrics.html", edits, rows, summary, examples)
    print("\n\n".join(table.text() for table in tables))
    print(f"Page: {page}")
    broken = [row for row in rows if row["error"]]
    for row in broken[:5]:
        print(f"{row['id']}: {row['error']}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {len(rows)} edits could not be measured in full.", file=sys.stderr)
    return 3 if broken else 0


def compare_suites(folders: Sequence[str], output: str = "comparison", examples: int = 3) -> int:
    """Compare editors by what :func:`run_suite` wrote of each: writes ``comparison.json``, ``.md``, ``.tex`` and
    ``.html``.

    Returns:
        The exit status, 0.

    Raises:
        ValueError, OSError: something is not there, does not fit together, or cannot be written.
    """
    from icve.evaluation.comparison import compare, comparison_table, read_measured
    from icve.evaluation.suite_page import write_comparison_page
    from icve.runtime.atomic import write_text

    if len(folders) < 2:
        raise ValueError("Name two folders or more, each of which icve eval run wrote into.")
    measured = read_measured(folders)
    compared = compare(measured)
    table = comparison_table(compared)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.json", json.dumps(compared, indent=2, allow_nan=False) + "\n")
    write_text(folder / "comparison.md", table.markdown())
    write_text(folder / "comparison.tex", table.latex())
    edits = {}
    for each in measured:
        try:
            edits[each.name] = _find_edits(each.summary["results"], each.summary["reference"])
        except (ValueError, OSError) as error:
            print(f"The page lacks the videos of {each.name}: {error}", file=sys.stderr)
    page = write_comparison_page(folder / "comparison.html", measured, edits, compared, examples)
    print(table.text())
    for each in measured[1:]:
        if alone := len(set(each.rows) ^ set(measured[0].rows)):
            print(f"{alone} edits of {measured[0].name} and {each.name} are not in both: left out.", file=sys.stderr)
    print(f"Page: {page}")
    return 0


def evaluate_synthetic(
    results: str,
    truth: str,
    splits: Sequence[str] | None = None,
    model: str | None = None,
    report: str | None = None,
    examples: int = 6,
) -> int:
    """Compare the results of `icve edit` with the true targets of a synthetic test set; prints the figures of the demo.

    An edit is found among the results by its id, else by its source's file name and its instruction; one that failed
    or is missing counts as no success.

    Args:
        results: ``results.jsonl``, beside the edited videos.
        truth: folder or manifest of the test set.
        splits: measured alone; None takes all that the test set has.
        model: model folder whose codec gives ``psnr_codec``; None takes the one named in the results.
        report: page to write; None is ``evaluation.html`` beside the results.
        examples: edits of every type on the page.

    Raises:
        ValueError, OSError: something is not there, does not fit together, or cannot be written.
    """
    from icve.editing.editors import resolve_model_folder, shipped_editor
    from icve.evaluation.demo_results import held_out_examples
    from icve.evaluation.report import Section, write_report
    from icve.evaluation.synthetic import evaluate

    manifest = _manifest_path(truth)
    if Path(results).is_dir():
        raise ValueError(f"{results} is a folder: name the results.jsonl of icve edit in it.")
    edits = _find_edits(results, truth)
    made = {edit.id: edit for edit in edits if edit.edited is not None}
    settings = next((dict(edit.result["settings"]) for edit in made.values()), {})
    codec = load_codec(resolve_model_folder(model or settings.get("model") or shipped_editor()))
    evaluation = evaluate({name: edit.edited for name, edit in made.items()}, manifest, codec=codec, splits=splits)
    made = {row["id"]: made[row["id"]] for row in evaluation.edits if row["id"] in made}
    seconds = sum(edit.result["seconds"] for edit in made.values())
    figures = evaluation.figures | {
        "seconds_edit": round(seconds, 3),
        "seconds_per_edit": round(seconds / max(1, len(evaluation.results)), 4),
    }
    paths = {
        row["id"]: row | {"result_path": str(made[row["id"]].edited)} for row in evaluation.edits if row["id"] in made
    }
    write_report(
        report or Path(results).with_name("evaluation.html"),
        [Section("Figures", figures)],
        held_out_examples(manifest, {"edited": paths}, examples),
        {"settings": settings, "figures": figures},
        {},
        title="Edits against their true targets",
        heading="Edits",
    )
    print(json.dumps(figures, indent=2, allow_nan=False))
    return 0


def find_leakage(train: str, test: str, hashes: str | None = None, output: str | None = None, workers: int = 1) -> int:
    """Look for test videos in training data, also re-encoded, scaled and cut ones; prints a table.

    Args:
        train, test: manifest, folder of videos, or video; also URLs.
        hashes: Parquet file to keep hashes in and take them from.
        output: file for a row per match.
        workers: threads, each decoding a video.

    Returns:
        The exit status: 0 for none, 4 where there are some, 3 where there are none but some videos could not be read.

    Raises:
        ValueError, OSError: something is not there, is wrong, or cannot be written.
    """
    from icve.evaluation.leakage.check import check_leakage, check_suffix, summary, write_rows

    if output is not None:
        check_suffix(Path(output))
    leakage = check_leakage(train, test, hashes, workers)
    if output is not None:
        write_rows(leakage.rows, Path(output))
    print(summary(leakage))
    for sentence in leakage.broken[:5]:
        print(f"icve eval: {sentence}", file=sys.stderr)
    if leakage.broken:
        print(f"icve eval: {len(leakage.broken)} videos or rows could not be read; the rest was.", file=sys.stderr)
    return 4 if leakage.matches else 3 if leakage.broken else 0


def load_codec(folder: Path) -> Any:
    """The codec of a model folder alone."""
    from diffusers.utils import logging

    from icve.editing.pipeline import EditPipeline

    logging.disable_progress_bar()  # of diffusers, for every folder it opens
    return EditPipeline.from_pretrained(folder, transformer=None, text_encoder=None, scheduler=None).codec


def _find_edits(results: str, reference: str | None) -> list[Edit]:
    from icve.data.manifest import read_manifest
    from icve.evaluation.edits import find_edits

    return find_edits(Path(results), None if reference is None else read_manifest(_manifest_path(reference)))


def _manifest_path(path: str) -> Path:
    """A manifest, also by the folder that `icve synthesize` made."""
    inside = as_path(path) / "manifest.parquet"
    return inside if inside.is_file() else as_path(path)
