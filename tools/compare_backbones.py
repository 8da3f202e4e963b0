"""The demo's transformers of both families beside each other: parameters, time of a step, and what they learned.

    python tools/compare_backbones.py                                  # parameters and CPU-seconds of a training step
    python tools/compare_backbones.py --demos runs/demo runs/wan       # what finished demos found

A step is forward, backward and update of configs/demo/sft.yaml's batch, with one frame and with nine as the demo mixes
them. The backbones take turns, so that whatever else the machine does slows both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import yaml

from icve.cli.demo.run import BACKBONES, find_config, find_configs
from icve.data.text_condition import TextCondition
from icve.evaluation.curves import read_curves
from icve.models.denoiser import Denoiser
from icve.models.family import located
from icve.training.optimization.optimizers import MuonAdamW

INSTRUCTION = "change the colour of the small red circle on the left to blue"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of each backbone, of which the median is taken (10)")
    parser.add_argument("--demos", type=Path, nargs="*", default=[], help="output folders of `icve demo`")
    arguments = parser.parse_args()
    if not arguments.demos:
        capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        print(f"{capability}, {threads} threads, torch {torch.__version__}\n")
        print("\n".join(step_table(arguments.steps)))
    else:
        print("\n".join(learned_table(arguments.demos)))


def model_settings(backbone: str) -> dict[str, Any]:
    """The section `model` of the demo's fine-tuning with a backbone."""
    model: dict[str, Any] = {}
    for file in find_configs("sft", backbone):
        model |= yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    return model


def step_table(steps: int, batch: int = 32) -> list[str]:
    """CPU-seconds of a training step of each backbone, a row each."""
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], 9: []} for name in BACKBONES}
    settings = {name: model_settings(name) for name in BACKBONES}
    share = next(
        callback["init_args"]["share"]
        for callback in yaml.safe_load(find_config("sft.yaml").read_text(encoding="utf-8"))["trainer"]["callbacks"]
        if callback["class_path"].endswith(".ShortClips")
    )
    models, optimizers = {}, {}
    for name, section in settings.items():
        models[name] = located(section["transformer"]["class_path"])(**section["transformer"]["init_args"])
        optimizers[name] = MuonAdamW(models[name].named_parameters(), **section["optimizer"]["init_args"])
    encoder = settings[BACKBONES[0]]["frozen"]["text_encoder"]
    text = located(encoder["class_path"])(**encoder["init_args"]).encode([INSTRUCTION] * batch)
    for _ in range(steps + 1):  # the first makes the optimizer's state
        for name, model in models.items():
            for frames, times in seconds[name].items():
                times.append(step_seconds(model, optimizers[name], text, (batch, 16, (frames - 1) // 4 + 1, 8, 8)))
    rows = ["| backbone | parameters | one frame, CPU-s | nine frames, CPU-s | a step of the demo, CPU-s | ratio |"]
    rows += ["|---|---:|---:|---:|---:|---:|"]
    first = None
    for name, times in seconds.items():
        short, whole = (median(times[frames][1:]) for frames in (1, 9))
        step = share * short + (1 - share) * whole
        first = first or step
        count = sum(parameter.numel() for parameter in models[name].parameters())
        rows.append(f"| {name} | {count:,} | {short:.3f} | {whole:.3f} | {step:.3f} | {step / first:.2f} |")
    return rows


def step_seconds(model: torch.nn.Module, optimizer: MuonAdamW, text: TextCondition, shape: tuple[int, ...]) -> float:
    """CPU-seconds of one optimizer step on latents of a shape."""
    noised, source, sigma = torch.randn(shape), torch.randn(shape), torch.rand(shape[0])
    started = time.process_time()
    predicted = Denoiser(model).denoise({"video": noised}, sigma, text, {"source": source})["video"]
    (predicted - noised).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - started


def learned_table(demos: Sequence[Path]) -> list[str]:
    """What finished demos found, a row each; the loss is the mean of those at the noise levels of validation."""
    rows = ["| backbone | seed | success | 95 % interval | after clips | PSNR inside | PSNR outside | held-out loss |"]
    rows += ["|---|---:|---:|---|---:|---:|---:|---:|"]
    for demo in demos:
        metrics = json.loads((demo / "metrics.json").read_text(encoding="utf-8"))
        settings, edits, clips = (metrics[name] for name in ("settings", "after_sft", "after_pretrain"))
        low, high = edits["success_interval"]
        curves = read_curves(demo / "sft")
        loss = mean(curve[-1][1] for name, curve in curves.items() if name.startswith("val/loss_sigma_"))
        rows.append(
            f"| {settings.get('backbone', BACKBONES[0])} | {settings['seed']} | {edits['success_ratio']:.1%} "
            f"| {low:.1%} to {high:.1%} | {clips['success_ratio']:.1%} | {edits['psnr_inside']:.2f} "
            f"| {edits['psnr_outside']:.2f} | {loss:.4f} |"
        )
    return rows


if __name__ == "__main__":
    main()
