"""Laws of the noise level in training, compared in the synthetic world: same data, weights and noise, another law.

    python tools/compare_noise_laws.py --output runs/noise_laws

For every seed a world is made once, and a model trained on its paired edits from random weights with every law, as
configs/demo/sft.yaml says otherwise. Then the held-out edits are made and measured. What is done is kept: the same
command goes on where it was stopped, and with more --seeds or --laws adds to it. The table shows, for each law, means
over the seeds and the differences to the first law of the same seed, with 95 % intervals (Student's t over the seeds).

Losses are at fixed noise on the same held-out pairs, so they compare across laws: "shipped" weighs the levels as the
first law draws them, "plain" all alike.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from icve.cli.demo.run import DemoSize, evaluate_run, find_config, hold_back, train
from icve.evaluation.curves import read_curves
from icve.evaluation.intervals import wilson_interval
from icve.evaluation.synthetic import load_evaluation
from icve.flow import TimestepDensity
from icve.runtime.atomic import write_text
from icve.synthetic.pair_files import synthesize_pairs
from icve.training.objectives.in_context import VALIDATION_SIGMAS

STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantile by degrees of freedom
OBJECTIVE = "--model.objective.init_args"
SHIPPED = TimestepDensity(shift=3.0)  # the demo's
STRATIFIED = f"{OBJECTIVE}.stratified=true"
LAWS: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "stratified": (STRATIFIED,),
    "uniform 0.2": (f"{OBJECTIVE}.density.uniform_share=0.2",),
    "both": (STRATIFIED, f"{OBJECTIVE}.density.uniform_share=0.2"),
}
FIGURES = {"success": "success, %", "psnr": "PSNR, dB", "shipped": "loss, shipped", "plain": "loss, plain"}
FIGURES |= {"low": "loss at σ 0.1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/noise_laws"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument(
        "--laws", nargs="+", choices=LAWS, default=list(LAWS), help="the first is what others compare to"
    )
    parser.add_argument("--pairs", type=int, default=1500, help="to train on")
    parser.add_argument("--edits", type=int, default=120, help="held out, a multiple of 6")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--frames", type=int, default=9, help="of every clip, 4k+1; 1 is a comparison on pictures")
    parser.add_argument("--precision", default="32-true", help="the same for all runs; bf16-mixed where that is faster")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    arguments = parser.parse_args()
    counts = {"train_pairs": arguments.pairs, "held_out_edits": arguments.edits, "sft_steps": arguments.steps}
    size = DemoSize(**counts, validation_pairs=96, frames=arguments.frames)
    done: dict[str, dict[int, dict[str, float]]] = {law: {} for law in arguments.laws}
    for seed in arguments.seeds:
        for law in arguments.laws:
            folder = arguments.output / f"seed{seed}" / law.replace(" ", "_")
            if not (folder / "figures.json").is_file():
                if arguments.table:
                    continue
                data = world(arguments.output / f"seed{seed}" / "data", size, seed)
                measure(folder, data, size, seed, (f"--trainer.precision={arguments.precision}", *LAWS[law]))
            done[law][seed] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
            print(f"seed {seed}, {law}: {done[law][seed]}", flush=True)
    print(table(done, arguments.edits))
    return 0


def world(folder: Path, size: DemoSize, seed: int) -> Path:
    """Pairs to train on, pairs for the losses and held-out edits of a seed."""
    made = {"seed": seed, "sizes": size.sizes, "frames": size.frames, "fps": size.fps, "workers": 1}
    if not (folder / "validation.parquet").is_file():
        pairs = synthesize_pairs(folder / "pairs", size.train_pairs + size.validation_pairs, split="train", **made)
        hold_back(pairs, folder, size.validation_pairs)
    if not (folder / "held_out" / "manifest.parquet").is_file():
        synthesize_pairs(folder / "held_out", size.held_out_edits, split="test", **made | {"seed": seed + 1000})
    return folder


def measure(folder: Path, data: Path, size: DemoSize, seed: int, options: tuple[str, ...]) -> None:
    """Train with a law, edit, and write figures.json: shares in %, PSNR of edits in dB, losses by noise level."""
    settings = replace(size, overrides=(f"--trainer.val_check_interval={size.sft_steps}", *options))
    train("sft", [find_config("sft.yaml")], data, folder / "run", settings, seed, start=None)
    evaluate_run(folder / "run", data / "held_out" / "manifest.parquet", folder / "after", settings, seed)
    edits, _ = load_evaluation(folder / "after")
    curves = read_curves(folder / "run")
    losses = [curves[f"val/loss_sigma_{sigma}"][-1][1] for sigma in VALIDATION_SIGMAS]
    shares = SHIPPED.shares(VALIDATION_SIGMAS)
    figures = {
        "success": 100 * edits["success_ratio"],
        "psnr": edits["psnr"],
        "shipped": sum(share * loss for share, loss in zip(shares, losses, strict=True)),
        "plain": statistics.mean(losses),
        "low": losses[0],
    }
    write_text(folder / "figures.json", json.dumps(figures, indent=2) + "\n")


def table(done: dict[str, dict[int, dict[str, float]]], edits: int) -> str:
    """Markdown: means over the seeds; under each law but the first, the differences to it with their intervals."""
    lines = ["| law | seeds | " + " | ".join(FIGURES.values()) + " |", "|---|---:|" + "---:|" * len(FIGURES)]
    (first, base), *_ = done.items()
    for law, by_seed in done.items():
        if not by_seed:
            continue
        means = {name: statistics.mean(figures[name] for figures in by_seed.values()) for name in FIGURES}
        count = edits * len(by_seed)
        low, high = wilson_interval(round(means["success"] / 100 * count), count)
        cells = [f"{means['success']:.1f} ({100 * low:.0f} to {100 * high:.0f})"]
        cells += [f"{means[name]:.4g}" for name in list(FIGURES)[1:]]
        lines.append(f"| {law} | {len(by_seed)} | " + " | ".join(cells) + " |")
        pairs = [(by_seed[seed], base[seed]) for seed in by_seed if seed in base]
        if law != first and len(pairs) > 1:
            cells = [difference([own[name] - theirs[name] for own, theirs in pairs]) for name in FIGURES]
            lines.append(f"| − {first} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(values: list[float]) -> str:
    """Mean of paired differences, and half the width of its 95 % interval."""
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{round(statistics.mean(values), 9):+.2g} ± {half:.2g}"


if __name__ == "__main__":
    sys.exit(main())
