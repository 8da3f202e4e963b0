"""Measure loading: how long the 13B model takes to build without weights, and the host memory that loading needs.

    python tools/bench_checkpoints.py
    python tools/bench_checkpoints.py --width 1024 --shard-size 100MB --dtype bfloat16 --format icve
    python tools/bench_checkpoints.py --mapped

Writes a random model in shards, loads it in a fresh process and compares the highest resident memory, less what the
process had before, with the limit: the loaded model and 1.2 times the largest shard. *Own* is what it then has of it
for itself: pages of a mapped file are shared by all processes and given back when memory is short. Linux only (/proc).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import export_transformer, load_transformer

LIMIT = 1.2  # largest shards


def build_13b() -> tuple[float, int]:
    """Seconds and parameters of the 13B model on the meta device."""
    start = time.perf_counter()
    with torch.device("meta"):
        model = HunyuanVideoInContextTransformer3DModel()
    return time.perf_counter() - start, sum(parameter.numel() for parameter in model.parameters())


def write_model(folder: Path, width: int, shard_size: str, format: str, depth: int = 4) -> None:
    """A float32 model of random weights."""
    model = HunyuanVideoInContextTransformer3DModel(
        num_attention_heads=width // 128,
        num_layers=depth,
        num_single_layers=2 * depth,
        num_refiner_layers=1,
        text_embed_dim=64,
        pooled_projection_dim=64,
    )
    export_transformer(model, folder, format, shard_size)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768, help="of the model; a multiple of 128")
    parser.add_argument("--shard-size", default="100MB")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="to load in (stored: float32)")
    parser.add_argument("--format", default="diffusers", choices=("diffusers", "icve"))
    parser.add_argument("--mapped", action="store_true", help="leave the weights in their files")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)  # the fresh process
    args = parser.parse_args()
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
