"""Measure checkpoints: what loading takes, and how long training stands still while one is written.

    python tools/bench_checkpoints.py
    python tools/bench_checkpoints.py --width 1024 --shard-size 100MB --dtype bfloat16 --format icve
    python tools/bench_checkpoints.py --mapped
    python tools/bench_checkpoints.py --stopped --processes 2

The first three tell how long the 13B model takes to build without weights, and the host memory that loading needs. That
writes a random model in shards, loads it in a fresh process and compares the highest resident memory, less what the
process had before, with the limit: the loaded model and 1.2 times the largest shard. *Own* is what it then has of it
for itself: pages of a mapped file are shared by all processes and given back when memory is short. Linux only (/proc).

`--stopped` writes checkpoints of a training state (weights, average and two of the optimizer's, float32, a part to each
process) while a loop of matrix products stands for training, in turns: as it once was, training waiting while all write
their parts and the first process the editor, alone and in float32; and as the configurations have it. *Stopped* is
how long a call keeps the loop, on the slowest process; *slower* is by how much the steps took longer meanwhile, which
share their cores with the writing here. Both are medians.
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import export_transformer, load_transformer
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.model_folder import write_weights
from icve.training.checkpoints.state_dicts import SHAPES
from icve.training.checkpoints.state_files import AVERAGE, OPTIMIZER, WEIGHTS, Slice

LIMIT = 1.2  # largest shards


def build_13b() -> tuple[float, int]:
    """Seconds and parameters of the 13B model on the meta device."""
    start = time.perf_counter()
    with torch.device("meta"):
        model = HunyuanVideoInContextTransformer3DModel()
    return time.perf_counter() - start, sum(parameter.numel() for parameter in model.parameters())


def write_model(folder: Path, width: int, shard_size: str, format: str, depth: int = 4) -> None:
    """A float32 model of random weights."""
    export_transformer(bench_model(width, depth), folder, format, shard_size)


def bench_model(width: int, depth: int, device: str = "cpu") -> HunyuanVideoInContextTransformer3DModel:
    with torch.device(device):
        return HunyuanVideoInContextTransformer3DModel(
            num_attention_heads=width // 128,
            num_layers=depth,
            num_single_layers=2 * depth,
            num_refiner_layers=1,
            text_embed_dim=64,
            pooled_projection_dim=64,
        )


def resident(which: str = "VmRSS") -> int:
    """Bytes of this process in memory now, the most it had ("VmHWM"; ru_maxrss counts the parent's too), or its own."""
    return 1024 * int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def loading(folder: Path, warm: Path, dtype: torch.dtype | None, mapped: bool) -> dict[str, float]:
    """Load in this process; `warm` is a tiny checkpoint loaded before, for the code that loading brings in."""
    load_transformer(warm, dtype=dtype, mapped=mapped)
    before, own = resident(), resident("RssAnon")
    start = time.perf_counter()
    model = load_transformer(folder, dtype=dtype, mapped=mapped)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {"seconds": seconds, "peak": peak - before, "model": size, "own": resident("RssAnon") - own}


def measure(
    width: int, shard_size: str, dtype: str | None, format: str, depth: int = 4, mapped: bool = False
) -> dict[str, float]:
    """{seconds, peak, own, model, shard, shards, limit}: sizes in bytes; `peak` is what loading added."""
    with tempfile.TemporaryDirectory() as place:
        folder, warm = Path(place) / "model", Path(place) / "warm"
        write_model(folder, width, shard_size, format, depth)
        write_model(warm, 128, "1GB", format, depth=1)
        command = [sys.executable, __file__, "--measure", folder, warm, *(["--dtype", dtype] if dtype else [])]
        command += ["--mapped"] if mapped else []
        same_code = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600, env=same_code)
        shards = [file.stat().st_size for file in folder.glob("*.safetensors")]
        result = json.loads(done.stdout.splitlines()[-1])
    return result | {
        "shard": max(shards),
        "shards": len(shards),
        "limit": result["model"] + LIMIT * max(shards),
    }


def stopped(
    rank: int, processes: int, place: Path, width: int, depth: int, rounds: int, export_every: int
) -> dict[str, tuple[float, float]]:
    """{way: (seconds stopped, seconds that steps took longer)} on a process, medians over the checkpoints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=processes)
    shapes = {name: list(value.shape) for name, value in bench_model(width, depth, "meta").state_dict().items()}
    slices = []
    for name, shape in shapes.items():
        size = -(-math.prod(shape) // processes)
        count = min(size, math.prod(shape) - rank * size)
        for kind in (WEIGHTS, AVERAGE, f"{OPTIMIZER}exp_avg", f"{OPTIMIZER}exp_avg_sq"):
            if count > 0:
                slices.append(Slice(kind, name, rank * size, torch.randn(count)))
    factor = torch.randn(512, 512)

    def step() -> float:
        start = time.perf_counter()
        for _ in range(8):
            factor @ factor
        return time.perf_counter() - start

    def alone(shapes: Any, folder: Path, files: Any, process: tuple[int, int], dtype: Any) -> list[Path]:
        return [] if process[0] else write_weights(shapes, folder, files, (0, 1), torch.float32)

    ways = {
        "waiting, editor by the first": (CheckpointFolders(write_weights=alone), False, torch.float32, 1),
        "meanwhile, editor by all": (
            CheckpointFolders(write_weights=write_weights),
            True,
            torch.bfloat16,
            export_every,
        ),
    }
    plain = statistics.median(step() for _ in range(50))
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, (folders, asynchronous, dtype, every) in ways.items():
            path, written = place / "checkpoints" / f"step-{number}", threading.Event()
            folders.exports, folders.export_dtype = number % every == 0, dtype
            dist.barrier()
            start = time.perf_counter()
            folders.finish()
            folders.save_shared({SHAPES: shapes}, path, slices, written.set if asynchronous else None)
            seconds, slower = time.perf_counter() - start, 0.0
            while asynchronous and rank == 0 and not written.is_set():
                slower += max(0.0, step() - plain)
            folders.finish()
            found[way].append((seconds, slower))
            if rank == 0:
                shutil.rmtree(path)
    seen: list[Any] = [None] * processes
    dist.all_gather_object(seen, found)
    dist.destroy_process_group()
    return {
        way: (
            statistics.median(max(of[way][number][0] for of in seen) for number in range(rounds)),
            statistics.median(slower for _, slower in seen[0][way]),
        )
        for way in ways
    }


def measure_stopped(
    processes: int, width: int, depth: int, rounds: int, export_every: int, folder: Path | None = None
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Bytes of the training state, and what `stopped` finds on the first of so many new processes."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        arguments = (processes, Path(place), width, depth, rounds, export_every)
        torch.multiprocessing.spawn(_save_stopped, arguments, nprocs=processes)
        result = json.loads((Path(place) / "result.json").read_text())
    return 16 * sum(value.numel() for value in bench_model(width, depth, "meta").parameters()), result


def _save_stopped(rank: int, processes: int, place: Path, *options: Any) -> None:
    result = stopped(rank, processes, place, *options)
    if rank == 0:
        (place / "result.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768, help="of the model; a multiple of 128")
    parser.add_argument("--shard-size", default="100MB")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="to load in (stored: float32)")
    parser.add_argument("--format", default="diffusers", choices=("diffusers", "icve"))
    parser.add_argument("--mapped", action="store_true", help="leave the weights in their files")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)  # the fresh process
    parser.add_argument("--stopped", action="store_true", help="how long training stands still for a checkpoint")
    parser.add_argument("--processes", type=int, default=1, help="that write it")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of each way")
    parser.add_argument("--export-every", type=int, default=1, help="as of the callback Checkpoints")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: that for temporary files")
    args = parser.parse_args()
    if args.stopped:
        size, ways = measure_stopped(args.processes, args.width, 4, args.rounds, args.export_every, args.folder)
        instructions = torch.backends.cpu.get_cpu_capability()
        print(f"{size / 1e9:.2f} GB of training state, {args.processes} processes, {instructions}")
        first = next(iter(ways.values()))[0]
        for way, (seconds, slower) in ways.items():
            print(f"| {way} | {seconds:.2f} s | {seconds / first:.1%} | {slower:.2f} s |")
        return
    if args.measure:
        print(json.dumps(loading(*args.measure, args.dtype and getattr(torch, args.dtype), args.mapped)))
        return
    seconds, count = build_13b()
    print(f"13B model on the meta device: {count / 1e9:.3f} G parameters in {seconds:.2f} s")
    result = measure(args.width, args.shard_size, args.dtype, args.format, mapped=args.mapped)
    sizes = {name: f"{result[name] / 1e6:.0f} MB" for name in ("model", "shard", "peak", "limit", "own")}
    print(f"{result['shards']} shards of {args.format} into {args.dtype or 'float32'}: {sizes}")
    print(f"loaded in {result['seconds']:.2f} s, {'below' if result['peak'] < result['limit'] else 'ABOVE'} the limit")


if __name__ == "__main__":
    main()
