"""Time what feeds a training step, from videos and from a latent cache, in the same run.

    python tools/bench_loading.py                                   # 32 synthetic edits at 64x64, 9 frames
    python tools/bench_loading.py --size 240 384 --frames 33 --pairs 16
    python tools/bench_loading.py -c configs/sft.yaml --latents runs/latents   # own data, with its codec
    python tools/bench_loading.py --stores --videos 480 768 --size 240 384 --frames 77 --pairs 8 --batch-size 2
    python tools/bench_loading.py --film VIDEO --peer CHECKOUT                 # bytes and CPU seconds of a clip

Samples per second of three ways to the same batches: `decode` delivers pixels, `encode` also runs the codec and the
text encoder on them, as a training step without a cache has to, `cache` delivers latents and embeddings. Rounds
alternate between the three, so that a busy machine slows all; the median counts. What workers prefetch while a loader
starts is not timed.

With --stores, the same pairs come from single files, from tar files, from an object store (moto's server, which this
tool starts on a loopback port; its own CPU time is not counted) whose blocks are not kept and are kept on disk, and
from a latent cache. CPU milliseconds are of this process without workers.

With --film, footage is looped into films of --mib MiB, one per container, and processes read clips of 77 frames in
their middle; so do processes of another checkout, in the same run. Bytes are those that a process asks the system for
(counted by Linux), beside those of the groups of pictures that hold a clip, and those that opening the file takes.
`no index` is the first clip of a process that finds no stored index (and writes it, where the code has one), `first`
and `further` are clips of another process after it.
"""

import argparse
import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import torch

from icve.data.cache.latents import LatentCache, ShardWriter
from icve.data.encoding import Encoders, encode_pairs, find_work
from icve.data.manifest import read_manifest, write_manifest
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.pairs import PairsDataModule
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from icve.synthetic.pair_files import synthesize_pairs
from icve.training.run.configured_parts import configured_parts

# Encoders of the films.
FILMS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "ts": "libx264", "avi": "mpeg4"}
FORMATS = {"mkv": "matroska", "ts": "mpegts"}
FAST = {"libx264": {"preset": "veryfast"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}, "mpeg4": {"bf": "0"}}
CLIP, SIZE, PLACES = 77, (240, 384), (0.5, 0.3, 0.7, 0.9)
# Runs in a process of its own until its input ends.
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
# Runs in a process of either checkout: prints bytes and CPU seconds of each clip.
READ = """
import json, sys, time
from pathlib import Path
import numpy as np
from icve.data.media.video import read_frames
try:
    from icve.data.media.stored_index import use
    store = use(Path(sys.argv[1]).parent, Path(sys.argv[1]).parent)
except ImportError:
    store = None
def asked():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
figures = []
for start in json.loads(sys.argv[2]):
    read, began = asked(), time.process_time()
    read_frames(sys.argv[1], np.arange(start, start + int(sys.argv[3])), size=json.loads(sys.argv[4]))
    figures.append([asked() - read, time.process_time() - began])
if store:
    store.write()
print(json.dumps(figures))
"""


def make_film(source: Path, path: Path, codec: str, size: float, rate: str = "4M", frames: int = 120) -> None:
    """Encode the first frames of a video and repeat their packets until the file has so many bytes."""
    kind = FORMATS.get(path.suffix[1:], path.suffix[1:])
    part = path.with_name("part.webm" if kind == "webm" else "part.mp4")
    with av.open(str(source)) as video, av.open(str(part), "w") as file:
        stream = None
        for number, frame in zip(range(frames), video.decode(video=0), strict=False):
            if stream is None:
                stream = file.add_stream(codec, rate=24, options={**FAST[codec], "b": rate})
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = frame.width, frame.height, "yuv420p", 48
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 24), 0
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    written = moved = 0
    with av.open(str(path), "w", format=kind) as film:
        copied = None
        while written < size:
            with av.open(str(part)) as file:
                stream = file.streams.video[0]
                if copied is None:
                    copied = film.add_stream_from_template(stream)
                    copied.time_base = Fraction(1, 24)  # AVI notes as many frames a second
                for packet in file.demux(stream):
                    if packet.size:
                        written += packet.size
                        for name in ("pts", "dts"):
                            setattr(packet, name, round(getattr(packet, name) * stream.time_base * 24) + moved)
                        packet.time_base, packet.stream = Fraction(1, 24), copied
                        film.mux(packet)
                moved += frames
    part.unlink()


def groups_of_pictures(path: Path, start: int) -> tuple[int, int]:
    """Bytes of the groups that hold a clip, and frames of the film."""
    with av.open(str(path)) as file:
        packets = [(packet.size, packet.is_keyframe) for packet in file.demux(video=0) if packet.size]
    group = np.cumsum([key for _, key in packets])
    wanted = np.isin(group, group[start : start + CLIP])
    return int(np.array([size for size, _ in packets])[wanted].sum()), len(packets)


def bytes_to_open(path: Path) -> int:
    """Bytes that a process asks for to open a file."""
    code = (
        "import av, pathlib, sys\n"
        "asked = lambda: int(pathlib.Path('/proc/self/io').read_text().split('rchar: ')[1].split()[0])\n"
        "before = asked()\nav.open(sys.argv[1])\nprint(asked() - before)"
    )
    return int(subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True).stdout)


def read_clips(checkout: Path, path: Path, starts: list[int]) -> list[list[float]]:
    """(bytes, CPU seconds) of each clip, in a process of a checkout."""
    words = [str(path), json.dumps(starts), str(CLIP), json.dumps(SIZE)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", READ, *words]
    # In another folder: Python looks for packages in its own first.
    run = subprocess.run(command, capture_output=True, check=True, text=True, env=environment, cwd=path.parent)
    return json.loads(run.stdout)


def compare_films(
    video: Path, checkouts: dict[str, Path], mib: float, containers: Sequence[str] = tuple(FILMS), rate: str = "4M"
) -> None:
    """Print a table of what clips of films cost."""
    print("| container | groups MiB | open MiB | code | no index MiB, s | first MiB, s | further MiB, s | / groups |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    for container in containers:
        codec = FILMS[container]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"film.{container}")
            make_film(video, path, codec, mib * 2**20, rate)
            _, frames = groups_of_pictures(path, 0)
            starts = [int(place * (frames - CLIP)) for place in PLACES]
            groups = statistics.mean(groups_of_pictures(path, start)[0] for start in starts[1:])
            opened = bytes_to_open(path)
            for name, checkout in checkouts.items():
                for file in set(Path(folder).iterdir()) - {path}:  # an index that another has stored
                    file.unlink() if file.is_file() else shutil.rmtree(file)
                (unknown,) = read_clips(checkout, path, starts[:1])
                first, *further = read_clips(checkout, path, starts)
                mean = [statistics.mean(column) for column in zip(*further, strict=True)]
                cells = " | ".join(f"{read / 2**20:.2f}, {cpu:.2f}" for read, cpu in (unknown, first, mean))
                head = f"| {container} {codec} | {groups / 2**20:.2f} | {opened / 2**20:.2f} | {name}"
                print(f"{head} | {cells} | {mean[0] / groups:.2f} |", flush=True)


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


def measure(data: PairsDataModule, batches: int, use: Callable[[dict[str, Any]], None]) -> tuple[float, float]:
    """Samples per second of a loader made anew, over so many batches after those that its workers prefetch; and CPU
    seconds of this process for a sample."""
    loader = iter(copy.copy(data).train_dataloader())
    for _ in range(1 + 2 * data.num_workers):
        use(next(loader))
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    for _ in range(batches):
        batch = next(loader)
        use(batch)
        samples += len(batch["id"])
    return samples / (time.perf_counter() - began), (time.process_time() - cpu) / samples


@contextmanager
def object_store() -> Iterator[None]:
    """moto's S3 server in a process of its own, which the environment names."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            if not (url := server.stdout.readline().strip()):
                raise SystemExit("The object store did not start: pip install 'icve[test]', which has moto.")
            os.environ |= {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            yield
        finally:
            server.stdin.close()


def packed(folder: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their clips in two tar files beside them."""
    roles = ("source", "target")
    for role in roles:
        with tarfile.open(folder / f"{role}s.tar", "w") as tar:
            for row in rows:
                tar.add(folder / row[f"{role}_path"], Path(row[f"{role}_path"]).name)
    names = [{f"{role}_path": f"{role}s.tar/{Path(row[f'{role}_path']).name}" for role in roles} for row in rows]
    return [row | name for row, name in zip(rows, names, strict=True)]


def compare_stores(scratch: Path, arguments: argparse.Namespace) -> None:
    """Print a table of what samples cost from where."""
    size, folder = tuple(arguments.size), scratch / "pairs"
    videos = tuple(arguments.videos or size)
    made = synthesize_pairs(folder, arguments.pairs, "train", sizes=(videos,), frames=arguments.frames, fps=24.0)
    rows = [{name: value for name, value in row.items() if name != "mask_path"} for row in read_manifest(made)]
    write_manifest(rows, scratch / "files.parquet", folder)
    write_manifest(packed(folder, rows), scratch / "tars.parquet", folder)
    files = fsspec.filesystem("s3")
    files.mkdir("pairs")
    for role in ("sources", "targets"):
        files.put(str(folder / role), f"pairs/{role}", recursive=True)

    def module(name: str, **options: Any) -> PairsDataModule:
        bucket = [*size, arguments.frames]
        return PairedEditsDataModule(str(scratch / f"{name}.parquet"), [bucket], arguments.batch_size, **options)

    encoders = Encoders(DCTCodec(), HashedTextEncoder(), arguments.device)
    fill_cache(scratch / "latents", module("files"), encoders)
    ways = {
        "local files": (module("files"), "0"),
        "tar files": (module("tars"), "0"),
        "object store": (module("files", root="s3://pairs"), "0"),
        "object store, blocks kept": (module("files", root="s3://pairs"), "20"),
        "latent cache": (module("files", latents=str(scratch / "latents")), "0"),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    os.environ["ICVE_CACHE"] = str(scratch / "blocks")
    for workers in arguments.workers:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, (data, kept) in ways.items():
                os.environ["ICVE_CACHE_GB"], data.num_workers = kept, workers
                data.setup("fit")
                rounds[name].append(measure(data, arguments.batches, lambda batch: None))
        for name in ways:
            found[name].append([statistics.median(column) for column in zip(*rounds[name], strict=True)])
    heads = [f"{workers} workers" for workers in arguments.workers]
    print(
        f"samples of {size[0]}x{size[1]}, {arguments.frames} frames, from videos of {videos[0]}x{videos[1]}, per second"
    )
    print(f"| from | CPU ms | {' | '.join(heads)} | to local files |\n|---|---:|{'---:|' * (len(heads) + 1)}")
    local = [speed for speed, _ in found["local files"]]
    for name, figures in found.items():
        speeds = [speed for speed, _ in figures]
        ratios = ", ".join(f"{speed / of:.2f}" for speed, of in zip(speeds, local, strict=True))
        cpu = f"{1000 * figures[0][1]:.1f}" if arguments.workers[0] == 0 else ""
        print(f"| {name} | {cpu} | {' | '.join(f'{speed:.1f}' for speed in speeds)} | {ratios} |", flush=True)


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
    parser.add_argument("--stores", action="store_true", help="compare where samples come from; nothing else runs")
    parser.add_argument(
        "--videos", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="with --stores: of the files (default: --size)"
    )
    parser.add_argument("--film", type=Path, metavar="VIDEO", help="footage that films are made of; nothing else runs")
    parser.add_argument("--containers", nargs="+", choices=FILMS, default=list(FILMS), help="of films")
    parser.add_argument("--mib", type=float, default=110, help="of each film")
    parser.add_argument("--rate", default="4M", help="bits per second of films (default: 4M)")
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="of another version, compared with --film")
    arguments = parser.parse_args()
    if arguments.film:
        checkouts = {"peer": arguments.peer} if arguments.peer else {}
        checkouts["icve"] = Path(__file__).parents[1]
        compare_films(arguments.film, checkouts, arguments.mib, arguments.containers, arguments.rate)
        return

    if arguments.stores:
        with tempfile.TemporaryDirectory() as scratch, object_store():
            compare_stores(Path(scratch), arguments)
        return

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
                    speeds[name].append(measure(module, arguments.batches, use)[0])
            decode, encode, cache = (statistics.median(speeds[name]) for name in ("decode", "encode", "cache"))
            figures = f"{decode:.1f} | {encode:.1f} | {cache:.1f} | {cache / decode:.1f} | {cache / encode:.1f}"
            print(f"| {workers} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
