"""`icve plan`: tokens, FLOPs, memory per GPU, communication and time of a run, before any weight is loaded."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

EPILOG = """examples:
  icve plan -c configs/pretrain_480p.yaml --gpus 64 --gpu_memory 80
  icve plan -c configs/sft.yaml --gpus 8 64 256 --gpu_memory 80 --cached        one line for each number of GPUs
  icve plan -c configs/sft.yaml --gpus 96 --gpu_memory 80 --strategy zero3 --mfu 0.35 --json
  icve plan -c configs/pretrain_240p.yaml --gpus 16 --gpu_memory 141 --data.init_args.batch_size 16

Options of `icve fit` override the configuration. Neither weights nor data need to be there: the transformer runs on
the meta device, where FLOPs and bytes are counted. ZeRO is planned as DeepSpeed does it, with the EMA partitioned
like the optimizer's state, and sequence parallelism as Ulysses. Of an adapter (model.start.lora) gradients, state and
EMA are its own, and the weights are counted as they are kept. Encoding videos and texts, which the GPUs that share a
sample divide among them, is counted at the same FLOP/s. Not counted: waiting for communication and data.

exit status: 0 a layout fits; 1 none does; 2 wrong arguments
"""


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve plan`; what it does not know goes to the parser of `icve fit`."""
    parser = argparse.ArgumentParser(
        prog="icve plan",
        description="What a training run needs: tokens, FLOPs, memory per GPU, communication, time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", required=True, help="training configuration")
    add("--gpus", type=int, nargs="+", required=True, help="number of GPUs; several are compared")
    add("--gpu_memory", type=float, required=True, metavar="GB", help="memory of each, in GB (2^30 bytes)")
    add("--strategy", nargs="+", default=None, help="only these: ddp, zero1, zero2, zero3 (or fsdp); default: all")
    add("--mfu", type=float, default=0.4, help="share of the peak at which all FLOPs run, recomputed ones included")
    add("--tflops", type=float, default=989.0, help="peak of one GPU in 16 bits (default: 989, an H100's)")
    add("--gpus_per_node", type=int, default=8, help="sequence parallelism stays within a node (default: 8)")
    add("--text_tokens", type=int, default=256, help="valid tokens of an instruction (default: 256, the most)")
    add("--reserve", type=float, default=4.0, metavar="GB", help="for CUDA, NCCL and fragmentation (default: 4)")
    add("--cached", action="store_true", help="latents and text embeddings are cached: nothing is encoded on the GPUs")
    add("--json", action="store_true", help="print JSON with every layout instead of tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve plan`; returns the exit status."""
    arguments, overrides = build_parser().parse_known_args(argv)
    # Imported late: help is quick.
    from icve.preflight.configured_run import read_run
    from icve.preflight.fits import Machine
    from icve.preflight.plan_report import Result, as_json, compare, tables

    try:
        _check(arguments)
        strategies = known_strategies(arguments.strategy)
        run = read_run(arguments.config, overrides, arguments.text_tokens, arguments.cached)
    except (ValueError, FileNotFoundError) as error:
        print(f"icve plan: error: {error}", file=sys.stderr)
        return 2
    memory, reserve = arguments.gpu_memory * 2**30, arguments.reserve * 2**30
    flops = arguments.tflops * 1e12 * arguments.mfu
    machines = [Machine(gpus, arguments.gpus_per_node, memory, reserve, flops) for gpus in arguments.gpus]
    results = [Result(run, machine, strategies) for machine in machines]
    if arguments.json:
        printed: Any = [as_json(result) for result in results]
        print(json.dumps(printed[0] if len(printed) == 1 else printed, indent=2, allow_nan=False))
    else:
        print(tables(results[0]) if len(results) == 1 else compare(results))
    return 0 if all(result.chosen is not None for result in results) else 1


def known_strategies(names: Sequence[str] | None) -> Sequence[str]:
    """Names of strategies as this command knows them; None is all."""
    from icve.preflight.layouts import ALIASES, STRATEGIES

    if names is None:
        return STRATEGIES
    known = [ALIASES.get(name, name) for name in names]
    for name in known:
        if name not in STRATEGIES:
            raise ValueError(f"there is no strategy '{name}': choose among {', '.join((*STRATEGIES, *ALIASES))}.")
    return known


def _check(arguments: argparse.Namespace) -> None:
    for name in ("gpu_memory", "tflops", "mfu", "gpus_per_node", "text_tokens"):
        value = getattr(arguments, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name} must be positive, not {value}.")
    if arguments.mfu > 1:
        raise ValueError(f"--mfu is a share of the peak, at most 1, not {arguments.mfu}.")
    if min(arguments.gpus) < 1 or arguments.reserve < 0:
        raise ValueError("--gpus must be at least 1 and --reserve not negative.")


if __name__ == "__main__":
    sys.exit(main())
