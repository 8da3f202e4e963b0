"""Time of a training step whose next batch is encoded beside its backward pass, against one that encodes its own.

    OMP_NUM_THREADS=1 python tools/bench_encode_ahead.py        # a core is left for the other thread, if there are two
    python tools/bench_encode_ahead.py --threads 2

A small random HunyuanVideo VAE encodes random clips in full, and a small transformer is trained on them, on a CPU; for
a GPU `tools/bench_gpu.py` does the same in the sizes of 480p. Both ways (with and without the callback `EncodeAhead`)
train the same module on the same batches and take turns; medians over the rounds are compared. *Encoding* is its
share of the steps that encode their own. *CPU seconds* are those of all threads of the process.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.weightless.hashed import HashedTextEncoder
from icve.training.callbacks.encode_ahead import EncodeAhead
from icve.training.module import InContextEditingModule
from icve.training.objectives.in_context import InContext

SMALL = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
WIDTHS = {"text_dim": 1024, "pooled_dim": 768}


@dataclass(frozen=True)
class Cost:
    """Of a step: seconds, CPU seconds of all threads, share that encodes (on a CPU), and peak bytes (of a GPU)."""

    seconds: float
    cpu: float
    encoding: float
    peak: int | None


class Clock(L.Callback):
    """Times steps from the beginning of one to that of another: as many encodings are between them either way."""

    def __init__(self, device: torch.device, warm_up: int, steps: int) -> None:
        self.device, self.steps = device, {warm_up: "start", warm_up + steps: "end"}
        self.marks: dict[str, tuple[float, float, float]] = {}
        self.encoding = 0.0  # seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx in self.steps:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                if self.steps[batch_idx] == "start":
                    torch.cuda.reset_peak_memory_stats()
            self.marks[self.steps[batch_idx]] = (time.perf_counter(), time.process_time(), self.encoding)


class Clips(L.LightningDataModule):
    """One batch of random pixels for ever."""

    def __init__(self, samples: int, clip: Sequence[int]) -> None:
        super().__init__()
        self.samples, self.clip = samples, clip

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.samples, 3, *self.clip), dtype=torch.uint8, generator=generator)
        if torch.cuda.is_available():  # as a loader's
            pixels = pixels.pin_memory()
        ids = [str(n) for n in range(self.samples)]
        return Endless({"source": pixels, "target": pixels, "instruction": ["make it red"] * len(ids), "id": ids})


class Endless:
    """A loader without a length, as that of pairs."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield dict(self.batch)


def bench_module(transformer: nn.Module, codec: nn.Module) -> InContextEditingModule:
    """Trains a transformer of `bench_checkpointing.Step`'s widths, on what the codec encodes."""
    frozen = {"codec": codec, "text_encoder": HashedTextEncoder(**WIDTHS)}
    return InContextEditingModule(transformer, frozen, InContext(), "bench", partial(torch.optim.SGD, lr=1e-9))


def step_cost(
    module: InContextEditingModule,
    data: Clips,
    ahead: bool,
    device: torch.device,
    warm_up: int = 1,
    steps: int = 3,
    precision: Any = "32-true",
) -> Cost:
    """Train for some steps and measure those after the first."""
    clock = Clock(device, warm_up, steps)
    plain = type(module).encode_own_videos

    def timed(*videos: torch.Tensor) -> Any:
        began = time.perf_counter()
        made = plain(module, *videos)
        clock.encoding += time.perf_counter() - began
        return made

    module.encode_own_videos = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_steps=warm_up + steps + 2,  # the last one has nothing to encode ahead
            default_root_dir=folder,
            callbacks=[clock, *([EncodeAhead()] if ahead else [])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, datamodule=data)
    module.encode_own_videos = partial(plain, module)  # type: ignore[method-assign]
    (start, cpu_start, before), (end, cpu_end, after) = clock.marks["start"], clock.marks["end"]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return Cost((end - start) / steps, (cpu_end - cpu_start) / steps, (after - before) / (end - start), peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of an operation (default: torch's)")
    parser.add_argument("--size", type=int, nargs=3, default=[5, 64, 96], metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--samples", type=int, default=1, help="of a step (1)")
    parser.add_argument("--blocks", type=int, nargs=2, default=[2, 4], help="of the transformer (2 4)")
    parser.add_argument("--heads", type=int, default=16, help="of 64 (16)")
    parser.add_argument("--steps", type=int, default=3, help="of a figure (3)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderKLHunyuanVideo(**SMALL).save_pretrained(folder)
        transformer = HunyuanVideoInContextTransformer3DModel(
            num_attention_heads=args.heads,
            attention_head_dim=64,
            num_layers=args.blocks[0],
            num_single_layers=args.blocks[1],
            rope_axes_dim=(16, 24, 24),
            text_embed_dim=WIDTHS["text_dim"],
            guidance_embeds=False,
        )
        module, data = bench_module(transformer, HunyuanVideoCodec(folder)), Clips(args.samples, args.size)
        costs: dict[bool, list[Cost]] = {False: [], True: []}
        for _ in range(args.rounds):
            for ahead, found in costs.items():
                found.append(step_cost(module, data, ahead, cpu, steps=args.steps))
    own = {ahead: statistics.median(cost.seconds for cost in found) for ahead, found in costs.items()}
    cores = {ahead: statistics.median(cost.cpu for cost in found) for ahead, found in costs.items()}
    share = statistics.median(cost.encoding for cost in costs[False])
    print(
        f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads an operation, {args.samples} "
        f"pairs of {'x'.join(map(str, args.size))}, encoding is {share:.0%} of a step\n"
    )
    print("| next batch | step s | ratio | CPU s | ratio |\n|---|---:|---:|---:|---:|")
    for ahead, name in ((False, "encoded in its turn"), (True, "encoded ahead")):
        ratios = own[ahead] / own[False], cores[ahead] / cores[False]
        print(f"| {name} | {own[ahead]:.3f} | {ratios[0]:.2f} | {cores[ahead]:.3f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
