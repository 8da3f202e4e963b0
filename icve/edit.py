"""`icve-edit`: edit one video, a folder or a manifest by instructions. The work itself is in `icve/editing/`."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.editing.items import Item
    from icve.editing.jobs import Clip, Outcome, Settings
    from icve.pipeline import EditPipeline

EPILOG = """examples:
  icve-edit --input clip.mp4 --instruction "make the red circle blue" --output out
  icve-edit --input clips/ --instruction "apply the sepia style" --output out --report 24
  icve-edit --model runs/demo/sft --input edits.jsonl --output out --shard 2/8
  icve-edit --transformer weights/icve --base weights/hunyuanvideo --input edits.jsonl --output out
  icve-edit --input edits.csv --columns video=source_path prompt=instruction --output out --dry-run

A manifest has an instruction per row: source_path, instruction and, if wanted, id, seed, source_start, source_frames.
Every item becomes OUTPUT/<id>.mp4 and a line of OUTPUT/results.jsonl. The same command again edits what is missing,
failed or changed; several processes may share a manifest and an output folder with --shard 1/n ... n/n.

exit status: 0 done; 2 wrong arguments; 3 some items failed, the others are done; 130 interrupted
"""
FAILED, INTERRUPTED = 3, 130
_UNRECORDED = "; nothing more is edited, as no result could be recorded. The same command goes on from here"


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve-edit`."""
    parser = argparse.ArgumentParser(
        prog="icve-edit",
        description="Edit videos by instructions with a trained in-context editor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="YAML", help="options by name, as in 'steps: 20'; those of the command line come first")
    add("--model", help="run, checkpoint or model folder (default: the small editor that comes with icve)")
    add("--transformer", metavar="ICVE", help="instead of --model: published weights, with --base")
    add("--base", metavar="HUNYUAN", help="HunyuanVideo's folder, diffusers' or Tencent's: autoencoder, text encoders")
    add("--input", help="video, folder of videos, or manifest (.jsonl, .csv, .parquet, folder of Parquet parts)")
    add("--instruction", help='what to change, e.g. "make the red circle blue"')
    add("--output", help="folder for the results")
    add("--root", help="folder that a manifest's paths are relative to (default: as recorded, else its own)")
    add("--columns", nargs="+", metavar="ITS=OURS", help="columns of a manifest by other names: video=source_path")
    add("--steps", type=int, help="sampling steps (default: the model's)")
    add("--guidance", type=float, help="classifier-free guidance, 1 switches it off (default: the model's)")
    add("--shift", type=float, help="shift of the noise schedule (default: the model's)")
    add("--negative-prompt", help="what the result should not be (default: the model's)")
    add("--seed", type=int, default=0, help="of the initial noise of items that bring none (default: 0)")
    add("--size", choices=("source", "model"), default="source", help="of the result (default: the source's)")
    add("--window", type=int, help="frames edited together, 4k+1; longer clips overlap (default: the model's)")
    add("--pixels", type=int, help="of a frame as it is edited, about: height times width (default: the model's)")
    add("--side-by-side", action="store_true", help="also write OUTPUT/side_by_side/<id>.mp4: source and result")
    add("--batch-size", type=int, help="windows edited together (default: by their number of tokens)")
    add("--shard", default="1/1", metavar="I/N", help="only part I of N; a source's items stay together")
    add("--report", type=int, metavar="N", help="also write OUTPUT/report.html with the first N results playing")
    add("--dry-run", action="store_true", help="say what would be done, at which sizes and for how long")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one, else cpu)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve-edit`; prints a summary as one line of JSON and returns the exit status."""
    parser = build_parser()
    try:
        arguments = _parse(parser, argv)
        return _run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"icve-edit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nicve-edit: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    from diffusers.utils import logging

    from icve.editing.items import read_items, shard
    from icve.editing.models import checked_device, load_editor, resolve_model_folder, shipped_editor
    from icve.editing.released import released_editor

    columns = dict(pair.split("=", 1) for pair in arguments.columns or ())
    output = Path(arguments.output)
    items = read_items(arguments.input, arguments.instruction, arguments.seed, arguments.root, columns, output)
    items = shard(items, arguments.shard)
    model = None if arguments.transformer else resolve_model_folder(arguments.model or shipped_editor())
    if not arguments.dry_run:
        _prepare_output(output, items)
    logging.disable_progress_bar()  # of diffusers, for every folder it opens
    if model is None:
        pipeline = released_editor(arguments.transformer, arguments.base, checked_device(arguments.device))
    else:
        pipeline = load_editor(model, arguments.device)
    settings = _settings(arguments, pipeline)
    if arguments.dry_run:
        return _dry_run(pipeline, items, settings, output)
    parts = [model] if model is not None else [Path(arguments.transformer), Path(arguments.base)]
    return _edit(pipeline, parts, items, settings, output, arguments.report)


def _edit(
    pipeline: EditPipeline,
    parts: list[Path],
    items: Sequence[Item],
    settings: Settings,
    output: Path,
    report: int | None,
) -> int:
    from rich.console import Console

    from icve.editing.batch import edit_items
    from icve.editing.jobs import Outcome
    from icve.editing.jobs import Progress as Seconds
    from icve.editing.models import fingerprint
    from icve.editing.results import ResultLog
    from icve.jobs import counting_bar

    began = time.perf_counter()
    log, seconds = ResultLog(output), Seconds()
    known, digest = log.read(), fingerprint(*parts)
    keys = {item.id: _key(item, settings, digest) for item in items}
    todo = [item for item in items if not _is_done(item, known, keys, settings, output)]
    failed: list[Outcome] = []

    def record(outcome: Outcome) -> None:
        if outcome.error is not None:
            failed.append(outcome)
            (output / f"{outcome.item.name}.mp4").unlink(missing_ok=True)  # what an earlier run made is out of date
        log.add(_row(outcome, settings, parts, keys[outcome.item.id]))

    def tell(item: Item, error: str) -> None:
        console.print(f"failed: {item.id}: {error}", markup=False, highlight=False, soft_wrap=True)

    work, refused = _plan(todo, settings)
    total = sum(len(clip.spans) * len(of_clip) for clip, of_clip in work)
    console = Console(stderr=True)
    pipeline.set_progress_bar_config(disable=True)
    try:
        for item, error in refused:
            record(Outcome(item, error=error))
            tell(item, error)
        with counting_bar("Editing", console) as bar:
            task = bar.add_task("", total=total)
            outcomes = edit_items(
                pipeline, work, settings, lambda item: output / f"{item.name}.mp4", seconds, lambda: bar.advance(task)
            )
            with closing(outcomes):  # its threads end with it, whatever happens here
                for outcome in outcomes:
                    record(outcome)
                    if outcome.error is not None:
                        tell(outcome.item, outcome.error)
        log.tidy()
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"icve-edit: {log.path} cannot be written ({error.strerror}){_UNRECORDED}.", file=sys.stderr)
        return FAILED
    summary = {
        "edited": len(todo) - len(failed),
        "failed": len(failed),
        "kept": len(items) - len(todo),
        "seconds": round(time.perf_counter() - began, 2),
        **{f"seconds_{kind}": round(value, 2) for kind, value in seconds.seconds.items()},
        "results": str(log.path),
    }
    if report:
        from icve.evaluation.edit_report import write_edit_report

        summary["report"] = str(write_edit_report(output / "report.html", items, log.read(), output, report))
    print(json.dumps(summary, ensure_ascii=False))
    return FAILED if failed else 0


def _plan(items: Sequence[Item], settings: Settings) -> tuple[list[tuple[Clip, list[Item]]], list[tuple[Item, str]]]:
    """Clips with their items, those of one shape together; and the items that cannot be edited, with the reason."""
    from concurrent.futures import ThreadPoolExecutor

    from icve.data.video import VideoError
    from icve.editing.jobs import clip_of

    groups: dict[tuple, list[Item]] = {}
    refused: list[tuple[Item, str]] = []
    for item in items:
        if item.problem is not None:
            refused.append((item, item.problem))
        else:
            groups.setdefault((item.source, item.start, item.count), []).append(item)

    def look(group: list[Item]) -> Clip | str:
        try:
            return clip_of(group[0], settings)
        except VideoError as error:
            return f"{group[0].shown_source} cannot be decoded: {error.reason}"

    with ThreadPoolExecutor(4) as pool:
        found = list(zip(pool.map(look, groups.values()), groups.values(), strict=True))
    refused += [(item, clip) for clip, group in found if isinstance(clip, str) for item in group]
    work = [(clip, group) for clip, group in found if not isinstance(clip, str)]
    return sorted(work, key=lambda pair: pair[0].shape), refused


def _dry_run(pipeline: EditPipeline, items: Sequence[Item], settings: Settings, output: Path) -> int:
    """Print what would be done; the time is extrapolated from one step at every size."""
    from icve.editing.batch import batch_size_for
    from icve.editing.estimate import seconds_per_batch

    work, refused = _plan(items, settings)
    for item, error in refused:
        print(f"would fail: {item.id}: {error}")
    groups: dict[tuple, list[tuple[Clip, list[Item]]]] = {}
    for clip, group in work:
        groups.setdefault((clip.shape, clip.info.displayed), []).append((clip, group))
    total = 0.0
    timed: dict[tuple, float] = {}
    for (shape, displayed), found in groups.items():
        edits = sum(len(group) for _, group in found)
        count = sum(len(clip.spans) * len(group) for clip, group in found)
        size = min(batch_size_for(shape, settings), count)
        if (shape, size) not in timed:
            timed[shape, size] = seconds_per_batch(pipeline, shape, size, settings.sampling)
        seconds = timed[shape, size] * count / size
        total += seconds
        written = shape[:2] if settings.size == "model" else displayed
        print(
            f"{edits} edits of {len(found)} clips of {displayed[1]}x{displayed[0]}: edited at {shape[1]}x{shape[0]} in "
            f"{count} windows of {shape[2]} frames, batches of {size}; written at {written[1]}x{written[0]}; "
            f"about {_duration(seconds)}"
        )
    steps = settings.sampling["num_inference_steps"]
    print(
        f"{len(items) - len(refused)} edits into {output}, {steps} steps each, guidance "
        f"{settings.sampling['guidance_scale']:g}: about {_duration(total)} on {pipeline.device}, "
        "decoding and writing aside"
    )
    return FAILED if refused else 0


def _settings(arguments: argparse.Namespace, pipeline: EditPipeline) -> Settings:
    from icve.editing.jobs import Settings

    given = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "guidance_until": None,
        "shift": arguments.shift,
        "negative_prompt": arguments.negative_prompt,
    }
    names = {"num_inference_steps": "steps"}
    sampling = {
        name: pipeline.default(names.get(name, name)) if value is None else value for name, value in given.items()
    }
    return Settings(
        sampling=sampling,
        window=arguments.window or pipeline.default("num_frames"),
        budget=arguments.pixels or pipeline.default("height") * pipeline.default("width"),
        size=arguments.size,
        side_by_side=arguments.side_by_side,
        batch_size=arguments.batch_size,
    )


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line over the YAML of --config. Raises ValueError for what is wrong in either."""
    arguments = parser.parse_args(argv)
    if arguments.config:
        parser.set_defaults(**_read_config(Path(arguments.config), parser))
        arguments = parser.parse_args(argv)
    for name in ("input", "output"):
        if not getattr(arguments, name):
            raise ValueError(f"--{name} is missing; icve-edit --help shows examples.")
    if arguments.instruction is not None and not str(arguments.instruction).strip():
        raise ValueError("The instruction is empty: say what to change.")
    if (arguments.transformer is None) != (arguments.base is None) or (arguments.base and arguments.model):
        raise ValueError("--transformer and --base go together and take the place of --model.")
    for name in ("steps", "batch_size", "report", "pixels"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if arguments.shift is not None and arguments.shift <= 0:
        raise ValueError(f"--shift must be positive, got {arguments.shift}.")
    if arguments.window is not None and (arguments.window < 1 or arguments.window % 4 != 1):
        raise ValueError(f"--window must be 4k+1 frames (1, 5, 9, ...), got {arguments.window}.")
    for pair in arguments.columns or ():
        if "=" not in pair:
            raise ValueError(f"--columns takes pairs like video=source_path, not {pair!r}.")
    return arguments


def _read_config(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"The configuration {path} does not exist.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold options by name, as in 'steps: 20'.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1, cutoff=0.0)[0].replace("_", "-")
            raise ValueError(f"{path} has no option {key!r}; the nearest is {near!r}.")
        action = actions[name]
        try:
            if name == "columns" and isinstance(value, dict):
                value = [f"{its}={ours}" for its, ours in value.items()]
            elif action.nargs == 0 and not isinstance(value, bool):
                raise ValueError("true or false")
            elif action.type is not None:
                value = action.type(value)
            elif action.choices is not None and value not in action.choices:
                raise ValueError(f"one of {', '.join(action.choices)}")
            elif action.nargs is None and not isinstance(value, str | type(None)):
                value = str(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {value!r} is no value for {key!r} ({error}).") from error
        checked[name] = value
    return checked


def _prepare_output(folder: Path, items: Sequence[Item]) -> None:
    """Make sure, before minutes are spent on editing, that results can be written and replace no source."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"The output folder {folder} cannot be written to: {error.strerror or error}.") from error
    outputs = {(folder / f"{item.name}.mp4").resolve() for item in items}
    for item in items:
        if item.source.resolve() in outputs:
            raise ValueError(f"A result would replace the input {item.shown_source}: choose another --output folder.")


def _key(item: Item, settings: Settings, model: str) -> str:
    """Hash of everything a result depends on: an item with another one is edited again."""
    try:
        stat = os.stat(item.source)
        source = [str(item.source.resolve()), stat.st_size, stat.st_mtime_ns]
    except OSError:
        source = [str(item.source), None, None]
    window = [settings.window, settings.budget, settings.size, settings.side_by_side, settings.crf]
    content = [source, item.start, item.count, item.instruction, item.seed, settings.sampling, window, model]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _is_done(item: Item, known: dict, keys: dict, settings: Settings, output: Path) -> bool:
    row, name = known.get(item.id, {}), f"{item.name}.mp4"
    files = [output / name, *([output / "side_by_side" / name] if settings.side_by_side else [])]
    return row.get("status") == "ok" and row.get("key") == keys[item.id] and all(file.is_file() for file in files)


def _row(outcome: Outcome, settings: Settings, parts: list[Path], key: str) -> dict[str, Any]:
    item, clip = outcome.item, outcome.clip
    used = {"model": str(parts[0]), **settings.sampling, "window": settings.window, "size": settings.size}
    row = {
        "id": item.id,
        "source": item.shown_source,
        "instruction": item.instruction,
        "output": None if outcome.error else f"{item.name}.mp4",
        "seed": item.seed,
        "settings": used,
        "seconds": round(outcome.seconds, 3),
        "status": "failed" if outcome.error else "ok",
        "error": outcome.error,
        "key": key,
    }
    if clip is not None:
        row |= {"frames": clip.frames, "fps": round(clip.info.fps, 4), "edited_size": list(clip.size)}
        row |= {"windows": len(clip.spans)}
    return row


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
