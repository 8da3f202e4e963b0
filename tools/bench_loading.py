"""Time what feeds a training step, from videos and from a latent cache, in the same run.

    python tools/bench_loading.py                                   # 32 synthetic edits at 64x64, 9 frames
    python tools/bench_loading.py --size 240 384 --frames 33 --pairs 16
    python tools/bench_loading.py -c configs/sft.yaml --latents runs/latents   # own data, with its codec

Samples per second of three ways to the same batches: `decode` delivers pixels, `encode` also runs the codec and the
text encoder on them, as a training step without a cache has to, `cache` delivers latents and embeddings. Rounds
alternate between the three, so that a busy machine slows all; the median counts. What workers prefetch while a loader
starts is not timed.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from icve.data.cache.latents import LatentCache, ShardWriter
from icve.data.encoding import Encoders, encode_pairs, find_work
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.pairs import PairsDataModule
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from icve.synthetic.pair_files import synthesize_pairs
from icve.training.run.configured_parts import configured_parts


def fill_cache(folder: Path, data: PairsDataModule, encoders: Encoders) -> None:
    """Encode what is missing of both manifests."""
    cache = LatentCache.create(folder, encoders.codec, encoders.text_encoder, "bfloat16", lambda: encoders.text(""))
    with ShardWriter(cache, (1, 1)) as writer:
        work = find_work(data, cache, (1, 1))
        encode_pairs(work, data, cache, encoders, writer, data.num_workers)


@torch.no_grad()
def encode_batch(batch: dict[str, Any], encoders: Encoders) -> None:
    """What a training step does with a batch of pixels before the transformer."""
    for role in ("source", "target"):
        encoders.codec.encode(batch[role].to(encoders.device).float() / 127.5 - 1.0)
    encoders.text_encoder.encode(batch["instruction"])
    if encoders.device.type == "cuda":
        torch.cuda.synchronize(encoders.device)


def samples_per_second(data: PairsDataModule, batches: int, use: Callable[[dict[str, Any]], None]) -> float:
    """Speed of a loader made anew, over so many batches after those that its workers prefetch."""
    loader = iter(copy.copy(data).train_dataloader())
    for _ in range(1 + 2 * data.num_workers):
        use(next(loader))
    began, samples = time.perf_counter(), 0
    for _ in range(batches):
        batch = next(loader)
        use(batch)
        samples += len(batch["id"])
    return samples / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="training configuration to take data, codec and text encoder from")
    parser.add_argument("--latents", type=Path, help="folder of the cache, filled where needed (default: temporary)")
    parser.add_argument("--pairs", type=int, default=32, help="synthetic ones, without a configuration")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=8, help="without a configuration")
    parser.add_argument("--batches", type=int, default=8, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the encoders")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        if arguments.config:
            parts = configured_parts(["-c", arguments.config])
            data, codec, text_encoder = parts.data, parts.codec, parts.text_encoder
        else:
            size, frames = tuple(arguments.size), arguments.frames
            synthesize_pairs(Path(scratch, "pairs"), arguments.pairs, "train", sizes=(size,), frames=frames)
            manifest = str(Path(scratch, "pairs", "manifest.parquet"))
            data = PairedEditsDataModule(manifest, [[*size, frames]], arguments.batch_size)
            codec, text_encoder = DCTCodec(), HashedTextEncoder()
        data.cache_in_memory = False  # every batch is decoded
        encoders = Encoders(codec, text_encoder, arguments.device)
        folder = arguments.latents or Path(scratch, "latents")
        fill_cache(folder, data, encoders)
        cached = copy.deepcopy(data)
        cached.latents = str(folder)
        for module in (data, cached):
            module.setup("fit")

        ways = {
            "decode": (data, lambda batch: None),
            "encode": (data, lambda batch: encode_batch(batch, encoders)),
            "cache": (cached, lambda batch: None),
        }
        print(f"samples/s, batches of {data.batch_size}, encoders on {arguments.device}")
        print("| workers | decode | encode | cache | cache / decode | cache / encode |\n|---|---|---|---|---|---|")
        for workers in arguments.workers:
            data.num_workers = cached.num_workers = workers
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.rounds):
                for name, (module, use) in ways.items():
                    speeds[name].append(samples_per_second(module, arguments.batches, use))
            decode, encode, cache = (statistics.median(speeds[name]) for name in ("decode", "encode", "cache"))
            figures = f"{decode:.1f} | {encode:.1f} | {cache:.1f} | {cache / decode:.1f} | {cache / encode:.1f}"
            print(f"| {workers} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
