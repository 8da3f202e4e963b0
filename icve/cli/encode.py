"""`icve encode`: a manifest's pairs as cached latents and texts. The work itself is in `icve/data/encoding.py`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence

from icve.runtime.printable import forgive_output
from icve.runtime.threads import set_up_threads

EPILOG = """examples:
  icve encode -c configs/demo/sft.yaml --output runs/latents
  icve encode -c configs/demo/sft.yaml --output runs/latents --shard 2/8 --device cuda:1 --workers 4
  icve encode -c configs/demo/sft.yaml --output runs/latents --data.init_args.fps 8
  lightning fit -c configs/demo/sft.yaml --data.init_args.latents runs/latents

The configuration is that of `lightning fit`, and so are further options. Its training and validation manifests are
encoded with its codec and text encoder. The same command again encodes what is missing or has changed.

exit status: 0 done; 2 wrong arguments; 3 some rows were rejected, the others are done; 130 interrupted
"""
USAGE, REJECTED, INTERRUPTED = 2, 3, 130


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve encode`; others are those of `icve fit`."""
    parser = argparse.ArgumentParser(
        prog="icve encode",
        description="Encode the videos and instructions of a training configuration once, for training from the cache.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", metavar="YAML", required=True, help="training configuration")
    add("--output", metavar="DIR", help="folder of the cache (default: the configuration's data.init_args.latents)")
    add("--shard", default="1/1", metavar="I/N", help="only every N-th row, from the I-th on; one process for each I")
    add("--workers", type=int, metavar="N", help="processes that decode (default: the configuration's num_workers)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="on disk (default: bfloat16)")
    add(
        "--device",
        help="that encodes: cpu, cuda, cuda:1, mps ... (default: cuda where there is one, else mps, else cpu)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve encode`; prints a summary as one line of JSON and returns the exit status."""
    set_up_threads()
    forgive_output()
    arguments, overrides = build_parser().parse_known_args(argv)
    package, handler = logging.getLogger("icve"), logging.StreamHandler()
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        return _run(arguments, overrides)
    except (ValueError, OSError) as error:
        print(f"icve encode: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nicve encode: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    finally:
        package.removeHandler(handler)


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from icve.data.media.media_paths import refuse_foreign
    from icve.runtime.process_pools import parse_shard

    refuse_foreign([arguments.output, *arguments.config, *overrides])
    part = parse_shard(arguments.shard)
    if arguments.workers is not None and arguments.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {arguments.workers}.")
    # Classes named in YAML are found in the working directory, whichever way the command was started.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    from rich.console import Console

    from icve.data.cache.latents import LatentCache, ShardWriter
    from icve.data.encoding import Encoders, encode_pairs, find_work
    from icve.data.pairs import PairsDataModule
    from icve.data.transforms import given_texts, on_latents
    from icve.runtime.precision import default_device
    from icve.runtime.process_pools import counting_bar
    from icve.training.run.configured_parts import configured_parts

    began = time.perf_counter()
    files = [word for file in arguments.config for word in ("-c", file)]
    parts = configured_parts([*files, *overrides])
    output = arguments.output or parts.latents
    if not output:
        raise ValueError("--output is missing: name the folder of the cache, or data.init_args.latents in the YAML.")
    if not isinstance(parts.data, PairsDataModule):
        raise ValueError(f"icve encode takes data modules of icve.data, not {type(parts.data).__name__}.")
    parts.data.check_cacheable()
    for transform in parts.data.transforms:  # what training would refuse, before any work
        on_latents(transform)
    device = arguments.device or default_device()
    try:
        encoders = Encoders(parts.codec, parts.text_encoder, device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The encoders cannot be put on the device {device!r}: {reason}") from error
    # Before the first pair, so that a cache of other encoders is refused before any work.
    cache = LatentCache.create(
        output, encoders.codec, encoders.text_encoder, arguments.dtype, lambda: encoders.text("")
    )

    cache.add_texts(given_texts(parts.data.transforms), encoders.text)
    console = Console(stderr=True)
    with ShardWriter(cache, part) as writer:
        work = find_work(parts.data, cache, part)
        workers = parts.data.num_workers if arguments.workers is None else arguments.workers
        with counting_bar("Encoding", console) as progress:
            task = progress.add_task("", total=len(work.jobs))
            encoded = encode_pairs(work, parts.data, cache, encoders, writer, workers, lambda: progress.advance(task))
    seconds = time.perf_counter() - began
    each = writer.bytes / encoded if encoded else 0
    if encoded:
        print(
            f"Encoded {encoded} pairs into {output}: {writer.bytes / 1e6:.1f} MB on disk, {each / 1e3:.1f} kB each in "
            f"{arguments.dtype}.",
            file=sys.stderr,
        )
    summary = {
        "rows": work.rows,
        "encoded": encoded,
        "reused": work.reused,
        "repeated": work.repeated,
        "rejected": len(work.rejected),
        "bytes": writer.bytes,
        "bytes_per_pair": round(each),
        "dtype": arguments.dtype,
        "seconds": round(seconds, 2),
        "output": str(output),
    }
    print(json.dumps(summary))
    return REJECTED if work.rejected else 0


if __name__ == "__main__":
    sys.exit(main())
