"""How far a step with float8 matrix products is from a float32 one, and how far a bfloat16 one is: loss and gradients.

Products of the blocks are rounded to float8 as a GPU does it and multiplied in float32 (emulated), so that any machine
tells the quality; nothing is said of speed. *Gradient* is the norm of the difference of the blocks' gradients by the
norm of the float32 ones, *worst block* the largest of a block's. Both ways round in the blocks, bfloat16 elsewhere too.

    python tools/bench_float8.py                             # 1 + 3 blocks of width 256; needs pip install 'icve[fp8]'
"""

import argparse
import statistics

import torch
from bench_checkpointing import Step
from torch import Tensor

from icve.training.callbacks.float8 import use_float8

CPU = torch.device("cpu")
WAYS = ("bfloat16", "float8")


def gradients(step: Step, dtype: torch.dtype | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of a step, with matrix products in 16 bits if a dtype is given."""
    named = {name: p for name, p in step.model.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = step.model(**step.inputs).float().square().mean()
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def compare(loss: Tensor, found: dict[str, Tensor], exact_loss: Tensor, exact: dict[str, Tensor]) -> list[float]:
    """Relative differences of the loss, of the blocks' gradients, and of those of the block where it is largest."""
    names: dict[str, list[str]] = {}
    for name in exact:
        if "transformer_blocks." in name:
            names.setdefault(".".join(name.split(".")[:2]), []).append(name)

    def difference(of: list[str]) -> float:
        a, b = (torch.cat([x[name].flatten() for name in of]) for x in (found, exact))
        return ((a - b).norm() / b.norm()).item()

    together = [name for of in names.values() for name in of]
    return [abs(loss / exact_loss - 1).item(), difference(together), max(map(difference, names.values()))]


def measure(heads: int, head_dim: int, layers, grid, text: int, seeds: int) -> dict[str, list[float]]:
    """Medians over random inputs of what `compare` tells of each of `WAYS`."""
    step = Step(heads, head_dim, layers, grid, text, torch.float32, "cpu")
    drawn = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        for name in ("hidden_states", "source_hidden_states", "encoder_hidden_states"):
            step.inputs[name] = torch.randn_like(step.inputs[name])
        drawn.append((dict(step.inputs), gradients(step), gradients(step, torch.bfloat16)))
    use_float8(step.model, CPU, emulate=True)
    rows = {way: [] for way in WAYS}
    for inputs, exact, half in drawn:
        step.inputs = inputs
        for way, found in zip(WAYS, (half, gradients(step)), strict=True):
            rows[way].append(compare(*found, *exact))
    return {way: [statistics.median(column) for column in zip(*figures, strict=True)] for way, figures in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs=2, default=[1, 3], help="double- and single-stream blocks")
    parser.add_argument("--grid", type=int, nargs=3, default=[2, 6, 6], help="target tokens along t, h, w")
    parser.add_argument("--text", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="random inputs, of which the median is told")
    args = parser.parse_args()
    measured = measure(args.heads, args.head_dim, args.layers, args.grid, args.text, args.seeds)
    print("| products | loss | gradient | worst block |")
    print("|---|---:|---:|---:|")
    for way, figures in measured.items():
        print(f"| {way} | {' | '.join(f'{figure:.1e}' for figure in figures)} |")


if __name__ == "__main__":
    main()
