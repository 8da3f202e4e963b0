"""Time and bytes of making a step's latents, where processes share its samples, against each making all of them.

    OMP_NUM_THREADS=1 python tools/bench_encoding.py
    python tools/bench_encoding.py --device cuda --processes 8 --vae HUNYUAN/vae --size 480 768 --frames 77 \\
        --tile 256 192 64 48

Synthetic pairs are decoded and encoded by a HunyuanVideo VAE, a small random one unless `--vae` names another. *Each
all*: every process decodes and encodes all clips of a batch, as without a group. *Shared*: each decodes its part and
encodes its tiles, and the rest comes from the others. Both make the same batches; they take turns, and the medians of
the slowest process are compared. *Pixels encoded* are those that the busiest process gives its network. *Received* is
what a process gets from the others for one batch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLHunyuanVideo

from icve.data.paired_edits import PairedEditsDataModule
from icve.data.share import SampleGroup
from icve.data.shared_loading import gather_clips
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.synthetic.pair_files import synthesize_pairs
from icve.training.distributed.shared_encoding import encode_clips

SMALL = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}


def batches(args: argparse.Namespace, folder: str, group: SampleGroup | None):
    """An endless loader of the same batches, which this process loads alone or as one of a group."""
    manifest = f"{folder}/pairs/manifest.parquet"
    data = PairedEditsDataModule(manifest, [[*args.size, args.frames]], args.samples, seed=1)
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(  # what a data module asks a trainer for
        distributed_sampler_kwargs={"rank": 0, "num_replicas": 1},
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(sample_group=group),
    )
    return iter(data.train_dataloader())


class Way:
    """One of the two ways to the latents of a batch."""

    def __init__(self, args: argparse.Namespace, folder: str, codec: HunyuanVideoCodec, group: SampleGroup | None):
        self.codec, self.group, self.device = codec, group, torch.device(args.device)
        self.loader = batches(args, folder, group)

    def loaded(self) -> dict:
        """The next batch in pixels, on the device."""
        batch = next(self.loader)
        own = {name: batch[name].to(self.device) for name in ("source", "target") if name in batch}
        batch = batch | own
        return batch if self.group is None else gather_clips(batch, self.group, self.device)

    @torch.no_grad()
    def encoded(self, batch: dict) -> list[torch.Tensor]:
        videos = [batch["source"], batch["target"]]
        if self.group is None:
            return [self.codec.encode(video.float() / 127.5 - 1.0).float() for video in videos]
        return encode_clips(self.codec, videos, self.group)()


def work(rank: int, args: argparse.Namespace, folder: str) -> None:
    if args.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=args.processes)
    group = SampleGroup(dist.group.WORLD, dist.new_group(backend="gloo"))
    size, stride, frames, frame_stride = args.tile
    tiles = {"tile_size": size, "tile_stride": stride, "tile_frames": frames, "tile_frame_stride": frame_stride}
    codec = HunyuanVideoCodec(args.vae or f"{folder}/vae", **tiles).to(args.device)
    codec.load()
    pixels: list[int] = []
    codec.vae.encoder.register_forward_hook(lambda module, inputs, output: pixels.append(inputs[0][:, :1].numel()))
    ways = {"each all": Way(args, folder, codec, None)}
    if args.processes > 1:
        ways["shared"] = Way(args, folder, codec, group)
    seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
    encoded, difference = {}, 0.0
    for number in range(args.rounds + 1):
        made = {}
        for name, way in ways.items():
            pixels.clear()
            batch, decoding = timed(way.loaded, args.device)
            made[name], encoding = timed(lambda way=way, batch=batch: way.encoded(batch), args.device)
            most = torch.tensor([decoding, encoding, sum(pixels)], dtype=torch.float64)
            dist.all_reduce(most, dist.ReduceOp.MAX, group.host)
            encoded[name] = int(most[2])
            if number:  # the first round warms up
                seconds[name].append(most[:2].tolist())
        for one, other in zip(made["each all"], list(made.values())[-1], strict=True):
            difference = max(difference, float((one - other).abs().max()))
    if rank == 0:
        latents = sum(tensor.nbytes for tensor in made["each all"])
        report(args, seconds, encoded, latents, difference)
    dist.destroy_process_group()


def timed(function, device: str):
    """What a function returns, and its seconds, all processes beginning together."""
    dist.barrier()
    began = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def report(args: argparse.Namespace, seconds: dict, encoded: dict[str, int], latents: int, difference: float) -> None:
    height, width = args.size
    pixels, others = 2 * args.samples * args.frames * height * width, (args.processes - 1) / args.processes
    print(
        f"{args.processes} processes ({args.device}), {args.samples} pairs of {height}x{width}x{args.frames} at once, "
        f"tiles {args.tile}, {torch.backends.cpu.get_cpu_capability()}; "
        f"latents differ by at most {difference:.1e}\n"
    )
    print("| way | decode s | encode s | together, ratio | pixels encoded | received: pixels MB | latents MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()
    }
    for name, (decode, encode) in medians.items():
        share = others if name == "shared" else 0.0
        print(
            f"| {name} | {decode:.3f} | {encode:.3f} | {(decode + encode) / sum(medians['each all']):.2f} "
            f"| {encoded[name] / pixels:.2f}x | {3 * pixels * share / 1e6:.2f} | {latents * share / 1e6:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="that share the samples")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vae", help="folder of a HunyuanVideo VAE; default: a small one with random weights")
    parser.add_argument("--size", type=int, nargs=2, default=[64, 96], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--samples", type=int, default=1, help="pairs of a batch")
    parser.add_argument("--tile", type=int, nargs=4, default=[64, 48, 16, 12], help="side, stride, frames, stride")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        synthesize_pairs(Path(folder, "pairs"), 4, "train", sizes=(tuple(args.size),), frames=args.frames)
        if args.vae is None:
            torch.manual_seed(0)
            AutoencoderKLHunyuanVideo(**SMALL).save_pretrained(f"{folder}/vae")
        torch.multiprocessing.spawn(work, (args, folder), args.processes)


if __name__ == "__main__":
    main()
