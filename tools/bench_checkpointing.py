"""Memory and time of a training step for every mode of activation checkpointing, as ratios against keeping all.

The modes take turns in every round, so that a busy machine slows all of them; medians are compared. *waiting* are the
bytes that wait for the backward pass when the forward pass has ended, *peak* the most there are in a step; parameters
and their gradients are counted in neither. On a GPU both are asked of its allocator, on the CPU counted by storage, but
not where blocks are compiled. `--compile` adds the modes compiled; what compiling takes is said beside.

    python tools/bench_checkpointing.py                      # 1440 visual tokens, 2+4 blocks of width 512, on the CPU
    python tools/bench_checkpointing.py --device cuda --heads 24 --head-dim 128 --layers 2 4 --grid 20 30 48 \\
        --text 256 --dtype bfloat16                          # blocks of the 13B model, tokens of the 480p bucket
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from icve.models.counting import LiveBytes
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.training.distributed.activation_checkpointing import Checkpointing

Way = tuple[Checkpointing, bool]  # and whether blocks are compiled

MODES: dict[str, Way] = {
    "none": (Checkpointing(), False),
    "full, every 2nd block": (Checkpointing("full", every=2), False),
    "selective, every 2nd block": (Checkpointing("selective", every=2), False),
    "selective": (Checkpointing("selective"), False),
    "full": (Checkpointing("full"), False),
}
COMPILED: dict[str, Way] = {f"{mode}, compiled": (MODES[mode][0], True) for mode in ("none", "selective", "full")}


class Step:
    """A forward and a backward pass on fixed random inputs; gradients are dropped as soon as they are there.

    Args:
        heads, head_dim, layers, dtype: of the transformer; layers are double- and single-stream blocks.
        grid: target tokens along t, h and w; the source has as many.
        text: text tokens.
        device: where it runs.
    """

    def __init__(self, heads: int, head_dim: int, layers, grid, text: int, dtype: torch.dtype, device: str) -> None:
        self.device = torch.device(device)
        torch.manual_seed(0)
        side = head_dim * 3 // 8 // 2 * 2
        with self.device:
            self.model = HunyuanVideoInContextTransformer3DModel(
                num_attention_heads=heads,
                attention_head_dim=head_dim,
                num_layers=layers[0],
                num_single_layers=layers[1],
                rope_axes_dim=(head_dim - 2 * side, side, side),
                text_embed_dim=1024,
                guidance_embeds=False,
            ).to(dtype)
            frames, height, width = grid
            latents = torch.randn(1, 16, frames, 2 * height, 2 * width, dtype=dtype)
            self.inputs = {
                "hidden_states": latents,
                "source_hidden_states": latents.flip(2),
                "timestep": torch.full((1,), 500.0),
                "encoder_hidden_states": torch.randn(1, text, 1024, dtype=dtype),
                "pooled_projections": torch.randn(1, 768, dtype=dtype),
            }
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)  # zero modulations would stop the gradients
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

    def seconds(self) -> float:
        self._synchronize()
        start = time.perf_counter()
        self.model(**self.inputs).float().square().mean().backward()
        self._synchronize()
        return time.perf_counter() - start

    def memory(self) -> tuple[int, int]:
        """Bytes that wait for the backward pass, and the most there are."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loss = self.model(**self.inputs).float().square().mean()
            waiting = torch.cuda.memory_allocated() - before
            loss.backward()
            return waiting, torch.cuda.max_memory_allocated() - before
        known = {tensor.untyped_storage()._cdata for tensor in (*self.model.parameters(), *self.inputs.values())}
        with LiveBytes(known) as memory:
            loss = self.model(**self.inputs).float().square().mean()
            waiting = memory.live
            loss.backward()
        return waiting, memory.most

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(
    make: Callable[[], Step], rounds: int, modes: Mapping[str, Way] = MODES
) -> dict[str, tuple[int, int, float, float]]:
    """(bytes waiting, most bytes, seconds, seconds of the first step) of every mode."""
    shared = make()
    # What is compiled stays with its model.
    steps = {name: make() if compiled else shared for name, (_, compiled) in modes.items()}
    memory, first, times = {}, {}, {name: [] for name in modes}
    for name, (mode, compiled) in modes.items():
        mode.apply(steps[name].model, compiled)
        first[name] = steps[name].seconds()
        steps[name].seconds()  # a graph for gradients that are there
        seen = not compiled or steps[name].device.type == "cuda"
        memory[name] = steps[name].memory() if seen else (0, 0)
    for _ in range(rounds):
        for name, (mode, compiled) in modes.items():
            if not compiled:
                mode.apply(shared.model)
            times[name].append(steps[name].seconds())
    return {name: (*memory[name], statistics.median(times[name]), first[name]) for name in modes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs=2, default=[2, 4], help="double- and single-stream blocks")
    parser.add_argument("--grid", type=int, nargs=3, default=[5, 12, 12], help="target tokens along t, h, w")
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also the modes with compiled blocks")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    make = partial(Step, args.heads, args.head_dim, args.layers, args.grid, args.text, dtype, args.device)
    capability = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {capability}"
    tokens = 2 * args.grid[0] * args.grid[1] * args.grid[2]
    print(
        f"{tokens} visual + {args.text} text tokens, {args.layers[0]}+{args.layers[1]} blocks of width "
        f"{args.heads * args.head_dim}, {args.dtype}, torch {torch.__version__}, {device}\n"
    )
    measured = measure(make, args.rounds, MODES | (COMPILED if args.compile else {}))
    none = measured["none"]
    print("| mode | waiting MiB | ratio | peak MiB | ratio | step s | ratio | first step s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, (waiting, peak, seconds, first) in measured.items():
        memory = [f"{size / 2**20:.1f} | {size / of:.2f}" for size, of in ((waiting, none[0]), (peak, none[1]))]
        memory = memory if waiting else ["| "] * 2
        print(f"| {name} | {' | '.join(memory)} | {seconds:.3f} | {seconds / none[2]:.2f} | {first:.3g} |")


if __name__ == "__main__":
    main()
