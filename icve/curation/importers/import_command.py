"""Arguments of `icve curate import` and what they do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from icve.curation.importers.importing import CHECKS, import_set
from icve.curation.importers.sets import SETS
from icve.runtime.storage.remote_path import as_path

EPILOG = """examples:
  icve curate import ditto data/Ditto-1M --output data/ditto
      checks that every video opens; data/ditto/manifest trains as it is (--data.init_args.manifest data/ditto/manifest)
  icve curate import reco data/ReCo-Data --output data/reco --extract
      unpacks the videos that rows name from the archives beside them
  icve curate import senorita data/Senorita --output data/senorita --tables style_transfer.json
      --columns enhanced_instruction=instruction
  icve curate import csv pairs.csv --output data/pairs --columns before=source_path after=target_path text=instruction
      --folders source_path=videos/before target_path=videos/after
  icve curate import webdataset s3://bucket/shards --output data/shards
      tar files with KEY.source.mp4, KEY.target.mp4 and KEY.json or KEY.txt; clips stay in them

Run again, it does what is missing and looks again for files that were not there.

exit status: 0 all records were kept; 2 wrong arguments or a damaged table; 3 some records were rejected
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `run` takes, and the description."""
    titles = "; ".join(f"{name}: {layout.title}" for name, layout in SETS.items())
    parser.description = f"Make a manifest of a public set of paired edits ({titles})."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("kind", choices=tuple(SETS), help="the set; csv is any CSV, JSON or Parquet table")
    add(
        "source", type=as_path, help="folder the set was downloaded to, or one of its tables; of tar shards, also a URL"
    )
    add("--output", required=True, help="folder for manifest/ and rejected/")
    add("--columns", nargs="+", default=[], metavar="THEIRS=OURS", help="names of columns, as in prompt=instruction")
    add("--folders", nargs="+", default=[], metavar="COLUMN=FOLDER", help="folders that a column's paths start from")
    add("--tables", nargs="+", metavar="PATTERN", help="tables below the folder (default: the set's own)")
    add("--root", type=as_path, help="folder that all videos lie in (default: the set's folder)")
    add("--check", choices=CHECKS, default="probe", help="of the videos: open them, look for them, or neither")
    add("--extract", action="store_true", help="unpack missing files from tar archives, beside them")
    add("--limit", type=int, help="records to read (default: all)")
    add("--workers", type=int, default=8, help="threads that look at files (default: 8)")


def run(arguments: argparse.Namespace) -> int:
    """Import, print the counts, and return the exit status."""
    try:
        names = {name: _assignments(getattr(arguments, name)) for name in ("columns", "folders")}
        report = import_set(**vars(arguments) | names)
    except (ValueError, OSError) as error:
        print(f"icve curate import: error: {error}", file=sys.stderr)
        return 2
    print(report)
    print(f"rows: {report.manifest}\nrejected, with reasons: {report.rejections}")
    return 3 if report.rejected or report.problems else 0


def _assignments(texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"'{text}' says nothing: write two names with = between, as in prompt=instruction.")
        pairs[name] = value
    return pairs
