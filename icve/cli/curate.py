"""`icve curate`: raw videos to training data, by a pipeline of stages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icve.runtime.printable import forgive_output

if TYPE_CHECKING:
    from icve.curation.stage_list import Pipeline

EPILOG = """examples:
  icve curate pipelines/clip_pairs.yaml --input raw/ --output data/clips
  icve curate pipelines/clip_pairs_demo.yaml --input raw/ --output data/clips --limit 20
  icve curate pipelines/clip_pairs.yaml frames=125 fps=24 --input raw/ --output data/clips_125
  icve curate pipelines/edit_pairs_offline.yaml --input raw/ --output data/edits --workers 8
  icve curate pipelines/clip_pairs.yaml --input raw/ --output data/clips --shard $SLURM_ARRAY_TASK_ID/64
                                            one task of sbatch --array=1-64
  icve curate status data/clips             what is done, and what was rejected for what reason
  icve curate preview data/clips            a page with kept and rejected samples of every stage
  icve curate import --help                 public sets of paired edits

The same command again does what is missing: after an interruption, with new videos, with changed parameters.
Results: OUTPUT/manifest (trains directly) and OUTPUT/rejected (stage, reason, detail), Parquet both.

exit status: 0 done; 1 a stage cannot run; 2 wrong usage; 3 some rows failed or none came out; 130 interrupted
"""
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve curate PIPELINE`."""
    parser = argparse.ArgumentParser(
        prog="icve curate",
        description="Turn raw videos into training data by a pipeline of stages (also: status, preview, import).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", help="YAML file; pipelines/ has some")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="values of the YAML file, as in frames=17")
    parser.add_argument("--input", required=True, help="folder of videos, a video, or a manifest; or a URL")
    parser.add_argument("--root", help="folder that an input manifest's paths are relative to (the recorded one)")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--runner", choices=("local", "ray"), default="local", help="where stages run (local)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes for CPU stages (all cores)")
    parser.add_argument("--gpus", type=int, help="devices for GPU stages (all there are)")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use the first N inputs only; of shards that OUTPUT has already, all that hold one of them, whole",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="work on every N-th shard from the I-th on, I from 1 to N (1/1)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve curate`; returns the exit status."""
    forgive_output()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["status"], ["preview"]):
        return _look(arguments)
    if arguments[:1] == ["import"]:
        return _import(arguments[1:])
    return _run(arguments)


def _run(argv: Sequence[str]) -> int:
    from icve.curation.raw_videos import find_inputs
    from icve.curation.run_folder import funnel_text
    from icve.curation.runner import run_pipeline
    from icve.curation.stage_list import load_pipeline
    from icve.curation.work import StageBroken
    from icve.data.media.media_paths import refuse_foreign
    from icve.data.media.video_folders import left_out_text
    from icve.runtime.process_pools import parse_shard
    from icve.runtime.storage.remote_path import refuse_url

    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    sys.path.insert(0, os.getcwd())  # for stages of the user's own, here and in the workers
    for name in ("workers", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, not {value}")
    try:
        part, parts = parse_shard(args.shard)
        refuse_url("--output", args.output)
        refuse_foreign(argv)
        pipeline = load_pipeline(args.pipeline, args.overrides)
        inputs = find_inputs(args.input, args.root)
        execute = _runner(args.runner, args.workers, args.gpus if args.gpus is not None else _devices(pipeline))
    except (ValueError, OSError, ImportError) as error:
        print(f"icve curate: {error}", file=sys.stderr)
        return 2
    if inputs.left_out:
        print(f"icve curate: {left_out_text(inputs.left_out)}", file=sys.stderr)
    try:
        result = run_pipeline(pipeline, inputs, args.output, execute, args.limit, (part - 1, parts))
    except StageBroken as error:
        print(f"icve curate: {error} What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"icve curate: {args.output} cannot be written: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(funnel_text(result.counts, result.shards))
    if result.manifest is None:
        print(
            f"{result.counts[-1].shards} of {result.shards} shards are through all stages. When all other processes "
            "are done, the same command writes the manifest."
        )
        return 0
    print(f"{result.rows} rows: {result.manifest}   rejected: {result.manifest.with_name('rejected')}")
    return 3 if result.failures or not result.rows else 0


def _devices(pipeline: Pipeline) -> int:
    if not any(stage.needs == "gpu" for stage in pipeline.stages):
        return 0
    import torch  # seconds, which only those wait for who need it

    return torch.cuda.device_count()


def _runner(name: str, workers: int, gpus: int):
    if name == "ray":
        from icve.curation.ray_runner import RayRunner

        return RayRunner(workers, gpus)
    from icve.curation.runner import LocalRunner, visible_devices

    return LocalRunner(workers, visible_devices(gpus))


def _look(argv: Sequence[str]) -> int:
    from icve.curation.preview import write_preview
    from icve.curation.status import status_text

    parser = argparse.ArgumentParser(prog=f"icve curate {argv[0]}")
    parser.add_argument("output", help="folder of a curation run")
    if argv[0] == "preview":
        parser.add_argument("--samples", type=int, default=6, help="kept and rejected samples of every stage (6)")
        parser.add_argument("--seed", type=int, default=0, help="takes other samples (0)")
    args = parser.parse_args(argv[1:])
    try:
        if argv[0] == "status":
            print(status_text(Path(args.output)))
        else:
            print(write_preview(Path(args.output), args.samples, args.seed))
    except (ValueError, OSError) as error:
        print(f"icve curate: {error}", file=sys.stderr)
        return 2
    return 0


def _import(argv: Sequence[str]) -> int:
    from icve.curation.importers.import_command import add_arguments, run

    parser = argparse.ArgumentParser(prog="icve curate import", formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
