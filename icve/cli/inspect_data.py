"""`icve inspect-data`: what training will really see of a manifest, before it trains on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """examples:
  icve inspect-data data/clips.parquet -c configs/pretrain_480p.yaml --output runs/inspection
      bucket, frames, rate and crop of every row as that configuration takes them; rows left out, and why;
      runs/inspection/pairs.png and pairs.html show the first pairs
  icve inspect-data data/edits.jsonl --kind edits --buckets 480x768x77 768x480x77 --fps 24 --decode
      without a configuration; every frame is decoded, which finds damaged files
  icve inspect-data -c configs/sft_pictures.yaml --output runs/inspection
      every data set of the configuration's mixture; runs/inspection/NAME/ shows pairs of each
  icve inspect-data data/edits.jsonl -c configs/sft.yaml --index
      also writes data/video_index.arrow, with which no process has to look through the videos again
  icve inspect-data data/million.jsonl --complete data/million --workers 16
      writes data/million, the same manifest with the width, height, frames and fps of every source file filled in, so
      that training need not look into the files; interrupted, the same command goes on

With -c, options of `icve fit` override the configuration (--data.init_args.fps 16).

exit status: 0 every row can be used; 2 wrong arguments; 3 some rows cannot
"""
PICTURE, PAGE = "pairs.png", "pairs.html"


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve inspect-data`; with -c, what it does not know goes to the parser of `icve fit`."""
    parser = argparse.ArgumentParser(
        prog="icve inspect-data",
        description="Show what training will see: bucket, frames, rate and crop of every row, and pictures of pairs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    kinds = ".jsonl, .json, .csv, .tsv, .parquet or a folder of Parquet files"
    add("manifest", nargs="?", help=f"manifest to inspect ({kinds}; default: what the configuration trains on)")
    add("-c", "--config", action="append", default=[], help="training configuration that says how it is read")
    add("--buckets", nargs="+", metavar="HxWxF", help="without -c: buckets, as in 480x768x77")
    add("--kind", choices=("clips", "edits"), default="edits", help="without -c: unpaired clips, or edits in step")
    add("--fps", type=float, help="without -c: resample to this rate (default: the files' own frames)")
    slow = "without -c: take clips slower than --fps at their own rate (default), or leave them out"
    add("--slow-clips", choices=("own_rate", "drop"), default="own_rate", help=slow)
    add(
        "--complete",
        type=Path,
        metavar="FOLDER",
        help="only write the manifest with sizes, lengths and rates filled in",
    )
    add("--workers", type=int, default=os.cpu_count(), help="with --complete: processes (default: one a core)")
    add("--root", help="without -c: folder that the manifest's paths are relative to")
    add("--columns", nargs="+", default=[], metavar="THEIRS=OURS", help="without -c: names of columns")
    add("--output", type=Path, help="folder for pairs.png and pairs.html (default: none are written)")
    add("--count", type=int, default=12, help="pairs shown (default: 12), taken from every bucket in turn")
    add("--rows", type=int, help="look at so many rows, evenly over the manifest (default: all)")
    add("--index", action="store_true", help="keep what is found out of the videos beside the manifest, for training")
    add("--decode", action="store_true", help="decode the frames of every row, not only of those shown")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve inspect-data`; returns the exit status."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and not arguments.config:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    # Imported late: help is quick.
    from icve.preflight.seen_pictures import write_page, write_sheet
    from icve.preflight.seen_rows import choose, inspect_rows, keep_index
    from icve.preflight.seen_table import summary

    try:
        if arguments.complete is not None:
            return _complete(arguments)
        if min(arguments.count, arguments.rows or 1) < 1:
            raise ValueError("--count and --rows must be at least 1.")
        module = _data_module(arguments, overrides)
        status = 0
        for data_set in module.data_sets:
            folder = arguments.output
            if module.mixture is not None:
                folder = folder and folder / data_set.name
                print(f"\n{data_set.name}, with weight {data_set.weight:g}: {data_set.manifest}\n")
            inspection = inspect_rows(module, arguments.decode, arguments.rows, data_set)
            shown = choose(inspection, arguments.count) if folder is not None else []
            pairs = [pair for pair in map(inspection.read, shown) if pair is not None]
            print(summary(inspection))
            if arguments.index:
                print(keep_index(data_set.manifest, inspection))
            if pairs:
                print(write_sheet(folder / PICTURE, pairs))
                print(write_page(folder / PAGE, pairs, inspection))
            status = 3 if inspection.dropped else status
    except (ValueError, FileNotFoundError, ConnectionError) as error:  # the last: icve.runtime.storage's RemoteError
        print(f"icve inspect-data: error: {error}", file=sys.stderr)
        return 2
    return status


def _complete(arguments: argparse.Namespace) -> int:
    from icve.data.manifest import column_names
    from icve.preflight.completing import complete_manifest

    if arguments.config:
        raise ValueError("--complete takes no -c: give --root and --columns where that configuration has them.")
    columns = column_names(arguments.columns)
    problems, rows = complete_manifest(
        Path(arguments.manifest), arguments.complete, arguments.root, columns, arguments.workers
    )
    for name, reason in problems:
        print(f"left as it is: {name}: {reason}")
    print(f"{arguments.complete}: {rows} rows, {len(problems)} records of the manifest could not be completed.")
    return 3 if problems else 0


def _data_module(arguments: argparse.Namespace, overrides: Sequence[str]):
    """The data module that would train on the manifest."""
    import pydoc

    from icve.data.manifest import column_names
    from icve.data.paired_edits import PairedEditsDataModule
    from icve.data.pairs import PairsDataModule
    from icve.data.unpaired_clips import UnpairedClipsDataModule

    if arguments.config:
        from icve.training.run.configuration import parse_configuration

        words = [word for path in arguments.config for word in ("-c", path)]
        data = parse_configuration([*words, *overrides]).data
        kind = pydoc.locate(data.class_path)
        if not (isinstance(kind, type) and issubclass(kind, PairsDataModule)):
            raise ValueError(f"{data.class_path} reads no videos: give a configuration that trains from pixels.")
        settings = data.init_args.as_dict()
        if "latents" in settings:
            settings["latents"] = None  # the videos are looked at
        if arguments.manifest is not None:
            settings |= {"manifest": arguments.manifest, "mixture": None}
        return kind(**settings | {"val_manifest": None, "cache_in_memory": False})
    if arguments.manifest is None:
        raise ValueError("There is nothing to inspect: name a manifest, or a configuration with -c.")
    if not arguments.buckets:
        raise ValueError("buckets are needed: name a configuration with -c, or give --buckets 480x768x77 ...")
    columns = column_names(arguments.columns)
    kind = UnpairedClipsDataModule if arguments.kind == "clips" else PairedEditsDataModule
    buckets = [_bucket(text) for text in arguments.buckets]
    settings = {"columns": columns, "root": arguments.root, "fps": arguments.fps, "slow_clips": arguments.slow_clips}
    return kind(arguments.manifest, buckets, 1, **settings)


def _bucket(text: str) -> list[int]:
    try:
        height, width, frames = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"'{text}' is no bucket: write height x width x frames, as in 480x768x77.") from None
    return [height, width, frames]


if __name__ == "__main__":
    sys.exit(main())
