"""`icve demo`: the whole method on a small scale, from no data at all to an editor and a page about it.

Raw synthetic videos → pairs of clips by scene detection on the files → pretraining on unpaired clips → held-out edits →
fine-tuning on paired edits → held-out edits → ``metrics.json`` and ``report.html``. A finished stage is not repeated: a
rerun goes on where the last one stopped, training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from icve.cli.demo.resumable import CannotRun, ResumableTasks, digest

EPILOG = """examples:
  icve demo                               everything, into runs/demo: seven to fifteen minutes on two CPU cores
  icve demo --output runs/seed1 --seed 1  another world and other weights
  icve demo --output runs/wan --backbone wan      the same with a Wan of as many parameters
  icve demo --videos clips/ --output runs/own     the same, also with your own videos: to learn from and to edit
  icve demo --tiny --output runs/tiny     every stage in about a minute, to see that it runs; it learns nothing

A demo that was stopped goes on when it is started again with the same options. Edit a video with what it trained:
  icve edit --model runs/demo/sft --input clip.mp4 --instruction "make the red circle blue" --output out/

exit status: 0 done; 1 curation or training failed, or a file could not be written; 2 wrong options; 130 interrupted
"""
BACKBONES = ("hunyuan_video", "wan")  # what pretrain.yaml and sft.yaml train; what BACKBONE.yaml puts in its place
TRAINING = {"pretrain": "pretraining on unpaired clips", "sft": "fine-tuning on paired edits"}
INTERRUPTED = 130
# Settings in configs/demo were chosen by edits of the test scenes of seed 0, so figures are taken on others.
HELD_OUT_SEED = 1000


class TrainingFailed(RuntimeError):
    """A training stage ended with an error, which it has reported."""


@dataclass(frozen=True)
class DemoSize:
    """How much of everything. The demo's time and quality are set here and in configs/demo/*.yaml, nowhere else.

    Steps of None are those of the YAML (training) and of the model (sampling); ``overrides`` are further options of
    ``icve fit``, for both stages.
    """

    raw_videos: int = 80
    train_pairs: int = 3000
    validation_pairs: int = 32  # clip pairs and paired edits kept back from training, for the loss curves
    held_out_edits: int = 120  # a multiple of the six edit types
    pretrain_steps: int | None = None
    sft_steps: int | None = None
    sampling_steps: int | None = None
    batch_size: int = 20  # held-out edits sampled together
    examples_per_type: int = 6  # on the report page
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)  # (height, width): one bucket each
    frames: int = 9
    fps: float = 8.0
    overrides: tuple[str, ...] = ()


DEFAULT = DemoSize()
TINY = DemoSize(
    raw_videos=2,
    train_pairs=18,
    validation_pairs=4,
    held_out_edits=6,
    pretrain_steps=4,
    sft_steps=3,
    sampling_steps=2,
    examples_per_type=1,
    overrides=("--data.init_args.batch_size=2", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2"),
)


def run_demo(
    output: str | Path,
    size: DemoSize = DEFAULT,
    seed: int = 0,
    configs: str | Path | None = None,
    workers: int = 2,
    videos: str | Path | None = None,
    backbone: str = BACKBONES[0],
) -> dict[str, Any]:
    """Run the demo, or what is left of it, and return what ``metrics.json`` holds.

    Args:
        output: folder for everything the demo makes.
        size: how much of everything.
        seed: of data, weights, training and sampling.
        configs: folder with ``pretrain.yaml``, ``sft.yaml`` and, unless the backbone is theirs, ``BACKBONE.yaml``; None
            takes those shipped with the package.
        workers: processes that make and cut videos.
        videos: folder of real videos; clip pairs and paired edits made from them are trained on too, and some edits of
            them are shown in the report.
        backbone: family of the transformer, one of ``BACKBONES``.

    Raises:
        CannotRun: a configuration is missing, ``output`` holds something else under a name the demo needs, too few raw
            videos were asked for, or there is no video in ``videos``.
        icve.curation.work.StageBroken: a stage of curation cannot run.
        TrainingFailed: a training stage ended with an error.
        OSError: something cannot be read or written.
    """
    from icve.cli.demo.own_videos import add_own_videos, edit_own, find_own, own_examples
    from icve.evaluation.demo_results import write_results
    from icve.synthetic.pair_files import synthesize_pairs
    from icve.synthetic.raw_files import synthesize_raw

    output = Path(output)
    own_videos = None if videos is None else find_own(videos)
    output.mkdir(parents=True, exist_ok=True)
    yaml = {stage: find_configs(stage, backbone, configs) for stage in TRAINING}
    data, stages = output / "data", ResumableTasks(output)
    world: dict[str, Any] = {"seed": seed, "sizes": size.sizes, "frames": size.frames, "fps": size.fps}
    made, kept_back = world | {"workers": workers}, size.validation_pairs

    stages.run(
        "synthesize_raw",
        f"{size.raw_videos} raw videos",
        data / "raw",
        world | {"count": size.raw_videos},
        lambda folder: synthesize_raw(folder, size.raw_videos, split="train", **made),
    )
    stages.run(
        "curate",
        "clip pairs by scene detection",
        data / "clips",
        world | {"videos": digest(data / "raw" / "events.jsonl"), "validation": kept_back},
        lambda folder: curate(data / "raw", folder, size, seed, workers),
    )
    count = size.train_pairs + kept_back
    stages.run(
        "synthesize_pairs",
        f"{count} paired edits",
        data / "pairs",
        world | {"count": count, "validation": kept_back},
        lambda folder: hold_back(synthesize_pairs(folder, count, split="train", **made), folder, kept_back),
    )
    unseen = seed + HELD_OUT_SEED
    stages.run(
        "synthesize_held_out",
        f"{size.held_out_edits} held-out edits",
        data / "held_out",
        world | {"count": size.held_out_edits, "held_out_seed": unseen},
        lambda folder: synthesize_pairs(folder, size.held_out_edits, split="test", **made | {"seed": unseen}),
    )
    held_out = data / "held_out" / "manifest.parquet"
    sources = {"pretrain": data / "clips", "sft": data / "pairs"}
    if own_videos is not None:
        sources = add_own_videos(stages, data, sources, own_videos, world, workers)

    weights, previous = "", None
    for stage, source in sources.items():
        weights = stages.run(
            stage,
            TRAINING[stage],
            output / stage,
            {
                "config": [digest(file) for file in yaml[stage]],
                "steps": getattr(size, f"{stage}_steps"),
                "sizes": size.sizes,
                "overrides": size.overrides,
                "seed": seed,
                "data": [digest(source / name) for name in ("train.parquet", "validation.parquet")],
                "weights": weights,
            },
            partial(train, stage, yaml[stage], source, size=size, seed=seed, start=previous),
        )
        stages.run(
            f"evaluate_{stage}",
            f"held-out edits after {TRAINING[stage]}",
            output / f"after_{stage}",
            {"weights": weights, "data": digest(held_out), "steps": size.sampling_steps, "seed": seed},
            partial(evaluate_run, output / stage, held_out, size=size, seed=seed),
        )
        previous = output / stage
    own, shown = data / "own" / "held_out.parquet", []
    if videos is not None and own.is_file():
        stages.run(
            "edit_own",
            "edits of your own videos",
            output / "after_own",
            {"weights": weights, "data": digest(own), "seed": seed},
            lambda folder: edit_own(output / "sft", own, folder, size.fps, seed),
        )
        shown = own_examples(own, output / "after_own")
    settings = {"seed": seed, "backbone": backbone, **asdict(size), "cpu_cores": os.cpu_count()}
    return write_results(output, TRAINING, settings, seconds_by_kind(stages), size.examples_per_type, shown)


def find_config(name: str, folder: str | Path | None = None) -> Path:
    """A demo configuration: in ``folder``, else as installed (icve/configs), else in the checkout beside the package.

    Raises:
        CannotRun: it is in none of them.
    """
    package = Path(str(resources.files("icve")))
    shipped = (package / "configs" / "demo", package.parent / "configs" / "demo")
    for place in shipped if folder is None else (Path(folder),):
        if (place / name).is_file():
            return place / name
    raise CannotRun(f"There is no {name} in {folder or shipped[0]}: name the folder it is in with --configs.")


def find_configs(stage: str, backbone: str, folder: str | Path | None = None) -> list[Path]:
    """The configurations of a stage with a backbone, each as `find_config`; a later one has the last word."""
    return [find_config(f"{name}.yaml", folder) for name in (stage, *({backbone} - {BACKBONES[0]}))]


def curate(raw: Path, folder: Path, size: DemoSize, seed: int, workers: int) -> None:
    """Cut the raw videos into clip pairs; the event log of the synthetic world says what differs between two clips.

    Raises:
        CannotRun: there are none, or none would be left to train on.
        icve.curation.work.StageBroken: a stage of the pipeline cannot run.
        OSError: the folder cannot be written.
    """
    from icve.cli.demo.own_videos import run_curation
    from icve.curation.raw_videos import find_inputs

    variables = {"frames": size.frames, "fps": size.fps, "seed": seed}
    result = run_curation("clip_pairs_synthetic.yaml", find_inputs(raw / "videos"), folder, workers, **variables)
    if result.manifest is None or not result.rows:
        raise CannotRun("No clip pair came out of the raw videos, the table says why: make more raw videos.")
    hold_back(result.manifest, folder, size.validation_pairs)


def hold_back(manifest: Path, folder: Path, count: int) -> None:
    """Split a manifest into ``train.parquet`` and ``validation.parquet`` in a folder.

    At least ``count`` pairs are kept back: all pairs of the last source videos, so that no video is in both.

    Raises:
        CannotRun: nothing would be left to train on.
    """
    from icve.data.manifest import read_manifest, write_manifest

    rows = read_manifest(manifest)
    videos = list(dict.fromkeys(row["source_path"] for row in rows))
    kept: set[str] = set()
    while videos and sum(row["source_path"] in kept for row in rows) < count:
        kept.add(videos.pop())
    if not videos:
        raise CannotRun(f"{len(rows)} pairs do not leave {count} for validation: make more raw videos or pairs.")
    for name, held in (("train", False), ("validation", True)):
        part = [row for row in rows if (row["source_path"] in kept) == held]
        write_manifest(part, folder / f"{name}.parquet", root=rows.root)


def train(
    stage: str, configs: Sequence[Path], data: Path, run: Path, size: DemoSize, seed: int, start: Path | None
) -> None:
    """Run ``icve fit`` in this process, so that whatever ends the demo ends the training too.

    Resumes from the run's last checkpoint if there is one, else begins with the weights of the run ``start``.

    Raises:
        TrainingFailed: it has said why.
    """
    from icve.cli import main as cli
    from icve.models.run_folders import resolve_checkpoint, saved_checkpoints

    arguments = ["fit", *(word for config in configs for word in ("-c", str(config)))]
    arguments += [f"--trainer.default_root_dir={run}", f"--seed_everything={seed}"]
    arguments += [f"--data.init_args.manifest={data / 'train.parquet'}"]
    arguments += [f"--data.init_args.val_manifest={data / 'validation.parquet'}"]
    arguments += [f"--data.init_args.buckets={[[*shape, size.frames] for shape in size.sizes]}", *size.overrides]
    if (steps := getattr(size, f"{stage}_steps")) is not None:
        arguments.append(f"--trainer.max_steps={steps}")
    if (initial := run if saved_checkpoints(run / "checkpoints") else start) is not None:
        arguments += ["--ckpt_path", str(resolve_checkpoint(initial))]
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit once it has shut its loaders down.
        raise KeyboardInterrupt from stop
    if status:
        raise TrainingFailed(
            f"{TRAINING[stage].capitalize()} failed with exit status {status}; the reason stands above."
        )


def evaluate_run(run: Path, manifest: Path, folder: Path, size: DemoSize, seed: int) -> None:
    """Edit the held-out set with a run's last checkpoint; write figures and edited videos into ``folder``."""
    from icve.editing.editors import load_editor
    from icve.evaluation.synthetic import evaluate, save_evaluation

    editor = load_editor(run)
    editor.set_progress_bar_config(disable=True)  # one bar over the edits is enough
    evaluation = evaluate(
        editor, manifest, batch_size=size.batch_size, seed=seed, num_inference_steps=size.sampling_steps
    )
    save_evaluation(evaluation, folder, size.fps)


def seconds_by_kind(stages: ResumableTasks) -> dict[str, float]:
    """Seconds by kind of work and in total; the three stages of synthesis count together."""
    totals: dict[str, float] = {}
    for name, state in stages.states.items():
        kind = "synthesize" if name.startswith("synthesize") else name
        totals[kind] = round(totals.get(kind, 0.0) + state["seconds"], 2)
    return totals | {"total": round(sum(totals.values()), 2)}


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve demo`."""
    from icve.cli.synthesize import size as clip_size

    parser = argparse.ArgumentParser(
        prog="icve demo",
        description="Make videos, train an editor in two stages, edit videos it never saw, and report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", default="runs/demo", help="folder for everything the demo makes (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights, training and sampling (0)")
    parser.add_argument("--tiny", action="store_true", help="a minute instead of a quarter of an hour; learns nothing")
    parser.add_argument("--backbone", choices=BACKBONES, default=BACKBONES[0], help=f"what is trained ({BACKBONES[0]})")
    parser.add_argument("--configs", help="folder with your own pretrain.yaml and sft.yaml (and wan.yaml)")
    parser.add_argument("--videos", help="folder of your own videos, to train on and to edit as well")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that make videos")
    for name, what in (
        ("raw_videos", "raw videos to make"),
        ("train_pairs", "paired edits to train on"),
        ("held_out_edits", "edits to evaluate, a multiple of 6"),
        ("pretrain_steps", "steps of pretraining"),
        ("sft_steps", "steps of fine-tuning"),
        ("sampling_steps", "denoising steps per edit"),
    ):
        default = getattr(DEFAULT, name)
        parser.add_argument(f"--{name}", type=int, help=f"{what} ({'as configured' if default is None else default})")
    parser.add_argument(
        "--sizes", type=clip_size, nargs="+", metavar="HxW", help="sizes of the videos, a bucket for each (64x64)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``icve demo``; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    size = TINY if args.tiny else DEFAULT
    given = {name: value for name, value in vars(args).items() if hasattr(size, name) and value is not None}
    for name, value in given.items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1, not {value}")
    from icve.curation.work import StageBroken

    try:
        options = (args.seed, args.configs, args.workers, args.videos, args.backbone)
        metrics = run_demo(args.output, replace(size, **given), *options)
    except CannotRun as error:
        print(f"icve demo: {error}", file=sys.stderr)
        return 2
    except (StageBroken, TrainingFailed) as error:
        print(f"icve demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, for one
        print(f"icve demo: a file cannot be read or written: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    from icve.evaluation.demo_results import figures_text

    for stage, title in TRAINING.items():
        print(f"\nAfter {title}\n{figures_text(metrics[f'after_{stage}'])}")
    print(f"\nTook {metrics['seconds_total'] / 60:.1f} minutes.")
    print(f"Figures: {Path(args.output) / 'metrics.json'}")
    print(f"Report:  {Path(args.output) / 'report.html'}")
    return 0
