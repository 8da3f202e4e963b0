"""Step time with the exchanges of sequence parallelism going on beside computing, as a ratio against waiting at once.

Processes share the tokens of one sample and take turns between three ways: *at once* waits where an exchange starts, in
both passes; *overlapped* is what the model does; *none* exchanges nothing (and computes nonsense), the least there can
be. Medians of the slowest process are compared. On a machine whose processes talk through memory an exchange costs
next to nothing, so a link is imitated by limiting the loopback device of a network namespace (Linux, as root):

    unshare --net sh -c 'ip link set lo up && tc qdisc add dev lo root tbf rate 1gbit burst 1mb latency 1s &&
        python tools/bench_sequence_parallel.py'
    python tools/bench_sequence_parallel.py --device cuda --processes 8 --heads 24 --head-dim 128 --layers 2 4 \\
        --grid 20 30 48 --text 256 --dtype bfloat16        # blocks of the 13B model, tokens of the 480p bucket
"""

import argparse
import statistics
import tempfile

import torch
import torch.distributed as dist
from bench_checkpointing import Step

from icve.models import sequence_parallel


class AtOnce(torch.autograd.Function):
    """An all-to-all that is waited for where it starts, forward and backward."""

    @staticmethod
    def forward(ctx, sent, received, counts, group):
        ctx.how = received, counts, group
        return _all_to_all(sent, received, counts, group)

    @staticmethod
    def backward(ctx, gradient):
        received, counts, group = ctx.how
        return _all_to_all(gradient.contiguous(), counts, received, group), None, None, None


def _all_to_all(rows, received, counts, group):
    came = torch.ops._c10d_functional.all_to_all_single(rows, list(received), list(counts), group)
    return torch.ops._c10d_functional.wait_tensor(came)


def at_once(sent, received, counts, group):
    came = AtOnce.apply(sent, received, counts, group)
    return lambda: came


def none(sent, received, counts, group):
    return lambda: sent


WAYS = {"at once": at_once, "overlapped": sequence_parallel._exchange, "none": none}


def work(rank: int, args: argparse.Namespace, store: str) -> None:
    torch.set_num_threads(1)
    if args.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=args.processes)
    step = Step(args.heads, args.head_dim, args.layers, args.grid, args.text, getattr(torch, args.dtype), args.device)
    times = {name: [] for name in WAYS}
    with sequence_parallel.sequence_parallel(dist.group.WORLD):
        for number in range(args.rounds + 1):
            for name, way in WAYS.items():
                sequence_parallel._exchange = way
                dist.barrier()
                seconds = torch.tensor(step.seconds(), device=step.device)
                dist.all_reduce(seconds, dist.ReduceOp.MAX)
                if number:  # the first round warms up
                    times[name].append(float(seconds))
    if rank == 0:
        report(args, {name: statistics.median(values) for name, values in times.items()})
    dist.destroy_process_group()


def report(args: argparse.Namespace, seconds: dict[str, float]) -> None:
    frames, height, width = args.grid
    print(
        f"{args.processes} processes ({args.device}), {2 * frames * height * width} visual + {args.text} text tokens, "
        f"{args.layers[0]}+{args.layers[1]} blocks of width {args.heads * args.head_dim}, {args.dtype}, "
        f"torch {torch.__version__}\n"
    )
    print("| exchanges | step s | ratio | share of the step | of the wait, hidden |")
    print("|---|---:|---:|---:|---:|")
    most, least = seconds["at once"], seconds["none"]
    for name, value in seconds.items():
        print(
            f"| {name} | {value:.3f} | {value / most:.2f} | {1 - least / value:.0%} "
            f"| {(most - value) / (most - least):.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="they divide the heads and half the visual tokens")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs=2, default=[1, 3], help="double- and single-stream blocks")
    parser.add_argument("--grid", type=int, nargs=3, default=[4, 12, 12], help="target tokens along t, h, w")
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    frames, height, width = args.grid
    if frames * height * width % args.processes or args.heads % args.processes:
        parser.error("the processes must divide the heads and the target's tokens, so that `none` has their shapes.")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, f"{folder}/store"), args.processes)


if __name__ == "__main__":
    main()
