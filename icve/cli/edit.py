"""`icve edit`: edit one video, a folder or a manifest by instructions. The work itself is in `icve/editing/`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icve.data.media.video_formats import FORMATS
from icve.editing.options import parse_options, settings_of
from icve.runtime.orphans import end_with_launcher
from icve.runtime.printable import forgive_output
from icve.runtime.threads import set_up_threads

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.editing.items import Item
    from icve.editing.jobs import Outcome, Settings
    from icve.editing.pipeline import EditPipeline
    from icve.editing.processes import Processes

EPILOG = """examples:
  icve edit --input clip.mp4 --instruction "make the red circle blue" --output out
  icve edit --input clips/ --instruction "apply the sepia style" --output out --report 24
  icve edit --model runs/demo/sft --input edits.jsonl --output out --shard 2/8
  icve edit --transformer weights/icve --base weights/base --input edits.jsonl --output out
  icve edit --input edits.csv --columns video=source_path prompt=instruction --output out --dry-run
  icve edit --input clip.mp4 --instruction "apply the sepia style" --output out --format prores4444
  icve edit --model runs/conditions/run --input clip.mp4 --mask mask.png --instruction "remove the circle" --output out
  torchrun --nproc_per_node 8 -m icve edit --input edits.jsonl --output out --sequence_parallel_size 4

A manifest has an instruction per row: source_path, instruction and, if wanted, id, seed, source_start, source_frames,
mask_path, reference_path.
Inputs, masks, references and models may be URLs, as s3://bucket/clips; results are written to a local folder.
Every item becomes OUTPUT/<id>.mp4 and a line of OUTPUT/results.jsonl. The same command again edits what is missing,
failed or changed; several processes may share a manifest and an output folder with --shard 1/n ... n/n.

--format says what an item becomes. All but mp4 hold alpha, from editors that make it:
  mp4         <id>.mp4: H.264, plays everywhere; the source's sound
  prores4444  <id>.mov: ProRes 4444, for editing programs; the source's sound
  vp9         <id>.webm: VP9, for web pages; the source's sound as Opus
  png         <id>.frames/000000.png ...: a picture per frame without loss; no sound and no times
Reports and side-by-side copies are made of all of them, and are MP4. A picture (.png, .jpg, .webp) becomes <id>.png.

A mask marks the region to change: white changes, black stays. It is a picture, for all frames, or a video, frame for
frame, and has the proportions of its video. A reference is a picture whose look something takes, as in "add the object
of the picture in the center". Both need an editor that was trained with them; of a manifest, others ignore the columns.

Under torchrun, the processes of a machine share the tokens of every edit. With --sequence_parallel_size S, groups of S
do, and groups take different edits; 1 gives every process its own.

exit status: 0 done; 2 wrong arguments; 3 some items failed, the others are done; 130 interrupted. torchrun makes every
failure 1: the counts are in the line of JSON.
"""
USAGE, FAILED, INTERRUPTED = 2, 3, 130
_UNRECORDED = "; nothing more is edited, as no result could be recorded. The same command goes on from here"


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve edit`."""
    parser = argparse.ArgumentParser(
        prog="icve edit",
        description="Edit videos by instructions with a trained in-context editor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="YAML", help="options by name, as in 'steps: 20'; those of the command line come first")
    add("--model", help="run, checkpoint or model folder (default: the small editor that comes with icve)")
    add("--transformer", metavar="WEIGHTS", help="instead of --model: published weights, with --base")
    add("--base", metavar="FOLDER", help="of the model it was made from, as published: autoencoder, text encoders")
    add(
        "--input",
        help="video, picture, folder of videos, or manifest (.jsonl, .json, .csv, .tsv, .parquet, Parquet parts)",
    )
    add("--instruction", help='what to change, e.g. "make the red circle blue"')
    add("--mask", metavar="FILE", help="picture or video, white in the region to change; for editors that take one")
    add("--reference", metavar="PICTURE", help="picture to take looks from; for editors that take one")
    add("--output", help="folder for the results")
    add("--root", help="folder that a manifest's paths are relative to (default: as recorded, else its own)")
    add("--columns", nargs="+", metavar="ITS=OURS", help="columns of a manifest by other names: video=source_path")
    add("--steps", type=int, help="sampling steps (default: the model's)")
    add("--guidance", type=float, help="classifier-free guidance, 1 switches it off (default: the model's)")
    add("--shift", type=float, help="shift of the noise schedule (default: the model's, which may depend on the size)")
    add("--solver", choices=("euler", "unipc"), help="of the steps (default: the model's)")
    add("--negative-prompt", help="what the result should not be (default: the model's)")
    add("--seed", type=int, default=0, help="of the initial noise of items that bring none (default: 0)")
    add("--size", choices=("source", "model"), default="source", help="of the result (default: the source's)")
    add("--window", type=int, help="frames edited together, 4k+1; longer clips overlap (default: the model's)")
    add("--pixels", type=int, help="of a frame as it is edited, about: height times width (default: the model's)")
    add("--format", choices=tuple(FORMATS), default="mp4", help="of the results, see below (default: mp4)")
    add("--side-by-side", action="store_true", help="also write OUTPUT/side_by_side/<id>.mp4: source and result")
    add("--batch-size", type=int, help="windows edited together (default: by their number of tokens)")
    add("--shard", default="1/1", metavar="I/N", help="only part I of N; a source's items stay together")
    add("--report", type=int, metavar="N", help="also write OUTPUT/report.html with the first N results playing")
    add("--dry-run", action="store_true", help="say what would be done, at which sizes and for how long")
    add("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one, else mps, else cpu)")
    add(
        "--precision",
        choices=("auto", "32", "bf16"),
        default="auto",
        help="of the model (default: on a CPU the faster)",
    )
    add(
        *("--sequence-parallel-size", "--sequence_parallel_size"),
        type=int,
        metavar="S",
        help="processes of torchrun that share an edit (default: those of a machine)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve edit`; the first process prints a summary as one line of JSON, and all return the exit status."""
    from icve.editing.processes import LostProcess, joined
    from icve.runtime.storage.remote_path import RemoteError
    from icve.runtime.together import FailedTogether

    set_up_threads()
    forgive_output()
    parser = build_parser()
    # What is wrong before processes meet is wrong for all of a machine: one of them says it.
    reports, met = int(os.environ.get("LOCAL_RANK", 0)) == 0, False
    try:
        arguments = parse_options(parser, argv)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        with joined(arguments.sequence_parallel_size, arguments.device) as processes:
            met = True
            return _run(arguments, processes)
    except FailedTogether as error:
        if not isinstance(error.__cause__, ValueError | OSError | None):
            raise
        if reports:
            print(f"icve edit: {error.reason}", file=sys.stderr)
        return USAGE
    except (ValueError, FileNotFoundError) as error:
        if reports or met:
            print(f"icve edit: {error}", file=sys.stderr)
        return USAGE
    except RemoteError as error:
        print(f"icve edit: {error} The same command goes on from here.", file=sys.stderr)
        return FAILED
    except LostProcess as error:
        print(f"icve edit: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if reports:
            print("\nicve edit: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace, processes: Processes) -> int:
    from icve.data.media.video_folders import left_out_text
    from icve.editing.estimate import print_estimate
    from icve.editing.items import shard
    from icve.editing.options import usable
    from icve.runtime.storage.remote_path import refuse_url
    from icve.runtime.together import gather, together

    refuse_url("--output", arguments.output)
    output = Path(arguments.output)
    items, left_out = together(
        lambda: _read_input(arguments, output) if processes.leads else ([], {}), processes.everybody
    )
    if left_out and processes.rank == 0:
        print(f"icve edit: {left_out_text(left_out)}", file=sys.stderr)
    pipeline, parts = together(lambda: _load(arguments, processes), processes.everybody)
    settings = settings_of(arguments, pipeline)
    items, ignored = usable(items, pipeline)
    if ignored and processes.rank == 0:
        print(f"icve edit: {ignored}", file=sys.stderr)
    status, summary = 0, None
    if not processes.leads:
        processes.follow(pipeline)
    elif arguments.dry_run:
        with processes.leading(pipeline):
            if processes.rank == 0:
                status = FAILED if print_estimate(pipeline, items, settings, output, processes) else 0
    else:
        mine = shard(items, f"{processes.group + 1}/{processes.groups}")
        with processes.leading(pipeline):
            summary = _edit(pipeline, parts, mine, settings, output, processes)
        status = FAILED if summary is None or summary["failed"] else 0
    ended = gather((status, summary), processes.everybody)
    if processes.rank == 0 and summary is not None:
        summary = _merged([summary for _, summary in ended if summary is not None])
        if left_out:
            summary["left_out"] = dict(Counter(left_out.values()))
        if arguments.report:
            from icve.editing.results import ResultLog
            from icve.evaluation.edit_report import write_edit_report

            page = write_edit_report(output / "report.html", items, ResultLog(output).read(), output, arguments.report)
            summary["report"] = str(page)
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    gather(
        None, processes.everybody
    )  # nobody leaves before the last: where one ends with an error, `torchrun` ends the others
    return max(status for status, _ in ended)


def _read_input(arguments: argparse.Namespace, output: Path) -> tuple[list[Item], dict[str, str]]:
    """The items, and the reasons why other files of the folder are none."""
    from icve.editing.items import read_items, shard

    found = read_items(
        *(arguments.input, arguments.instruction, arguments.seed, arguments.root, arguments.columns, output),
        *(arguments.mask, arguments.reference),
    )
    items = shard(found, arguments.shard)
    if not arguments.dry_run:
        _prepare_output(output, items, FORMATS[arguments.format].suffix)
    return items, found.left_out


def _load(arguments: argparse.Namespace, processes: Processes) -> tuple[EditPipeline, list[Path]]:
    """The editor, and the folders it was made of."""
    from diffusers.utils import logging

    from icve.editing.editors import checked_device, load_editor, resolve_model_folder, shipped_editor
    from icve.editing.released import released_editor
    from icve.models.remote_runs import on_disk

    def say(line: str) -> None:
        if processes.rank == 0:
            print(line, file=sys.stderr)

    logging.disable_progress_bar()  # of diffusers, for every folder it opens
    if arguments.transformer:
        parts = [on_disk(arguments.transformer, editor=True), on_disk(arguments.base)]
        device = checked_device(processes.device)
        pipeline = released_editor(parts[0], parts[1], device, arguments.precision, processes.world, say)
    else:
        parts = [resolve_model_folder(arguments.model or shipped_editor())]
        pipeline = load_editor(parts[0], processes.device, arguments.precision, processes.world, say)
    processes.check(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, parts


def _edit(
    pipeline: EditPipeline,
    parts: list[Path],
    items: Sequence[Item],
    settings: Settings,
    output: Path,
    processes: Processes,
) -> dict[str, Any] | None:
    """Edit what is not done yet; returns what the summary says, None where results could not be recorded."""
    from rich.console import Console

    from icve.editing.batch import edit_items
    from icve.editing.jobs import Outcome, plan
    from icve.editing.jobs import Progress as Seconds
    from icve.editing.results import ResultLog, is_done, item_key, remove_result, result_row
    from icve.models.weight_files import fingerprint
    from icve.runtime.process_pools import counting_bar

    began = time.perf_counter()
    log, seconds = ResultLog(output), Seconds()
    known, digest = log.read(), fingerprint(*parts)
    keys = {item.id: item_key(item, settings, digest) for item in items}
    todo = [item for item in items if not is_done(item, known, keys, settings, output)]
    failed: list[Outcome] = []
    noted = 0

    def record(outcome: Outcome) -> None:
        if outcome.error is not None:
            failed.append(outcome)
            remove_result(output / settings.file_name(outcome.item))  # what an earlier run made is out of date
        log.add(result_row(outcome, settings, parts, keys[outcome.item.id]))

    def report(item: Item, text: str, kind: str = "failed") -> None:
        # As they are: names may hold what looks like markup or the name of an emoji.
        line = f"{kind}: {item.id}: {text}"
        console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    work, refused = plan(todo, settings)
    total = sum(len(clip.spans) * len(of_clip) for clip, of_clip in work)
    console = Console(stderr=True)
    try:
        for item, error in refused:
            record(Outcome(item, error=error))
            report(item, error)
        bar = counting_bar("Editing" if processes.groups == 1 else f"Editing, part 1 of {processes.groups}", console)
        bar.disable = bar.disable or processes.rank > 0
        with bar:
            task = bar.add_task("", total=total)
            outcomes = edit_items(
                *(pipeline, work, settings, lambda item: output / settings.file_name(item)),
                *(seconds, lambda: bar.advance(task)),
            )
            with closing(outcomes):  # its threads end with it, whatever happens here
                for outcome in outcomes:
                    record(outcome)
                    if outcome.error is not None:
                        report(outcome.item, outcome.error)
                    elif outcome.note is not None:
                        noted += 1
                        report(outcome.item, outcome.note, "note")
        log.tidy()
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"icve edit: {log.path} cannot be written ({error.strerror}){_UNRECORDED}.", file=sys.stderr)
        return None
    return {
        "edited": len(todo) - len(failed),
        "failed": len(failed),
        "kept": len(items) - len(todo),
        "with_notes": noted,
        "seconds": round(time.perf_counter() - began, 2),
        **{f"seconds_{kind}": round(value, 2) for kind, value in seconds.seconds.items()},
        "results": str(log.path),
    }


def _merged(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of what several groups did: counts and seconds of work add up, the longest says how long it took."""
    merged = dict(summaries[0])
    for name in merged:
        if name != "results":
            values = [summary[name] for summary in summaries]
            merged[name] = max(values) if name == "seconds" else round(sum(values), 2)
    return merged


def _prepare_output(folder: Path, items: Sequence[Item], suffix: str) -> None:
    """Make sure, before minutes are spent on editing, that results can be written and replace no source."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"The output folder {folder} cannot be written to: {error.strerror or error}.") from error
    from icve.editing.items import result_name

    outputs = {(folder / result_name(item, suffix)).resolve() for item in items}
    for item in items:
        if item.source.resolve() in outputs:
            raise ValueError(f"A result would replace the input {item.shown_source}: choose another --output folder.")


if __name__ == "__main__":
    sys.exit(main())
