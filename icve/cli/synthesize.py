"""``icve synthesize``: procedural videos with exact ground truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from icve.synthetic.condition_files import synthesize_conditions
from icve.synthetic.hard_pairs import HARD_SPLITS
from icve.synthetic.pair_files import synthesize_pairs
from icve.synthetic.paired_clips import SPLITS
from icve.synthetic.raw_files import synthesize_raw

_EXAMPLES = """\
examples:
  icve synthesize pairs --seed 0 --count 60 --output heldout
      60 edits to test on: sources, targets, masks, targets of wrong instructions, manifest.parquet
  icve synthesize pairs --split train --seed 0 --count 6000 --output pairs --workers 2
      paired edits to fine-tune on
  icve synthesize pairs --split test occlusion typos --seed 0 --count 200 --output harder
      200 edits of each of these splits, of which two are harder in one way
  icve synthesize pairs --split train --seed 0 --count 6000 --output pictures --frames 1
      edits of pictures, PNG files
  icve synthesize raw --split train --seed 0 --count 40 --output raw --size 64x64 64x112 --workers 2
      long videos with cuts and events, and the log of what happens in them
  icve synthesize conditions --split train --seed 0 --count 2000 --output conditions
      edits of one of two twins, which a mask chooses, and insertions of what a reference picture shows

The same arguments give the same videos; another count only adds or leaves out the last ones. A run that was
interrupted goes on where it stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0, or 2 for arguments that cannot be met)."""
    arguments = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
    kinds = {"raw": synthesize_raw, "pairs": synthesize_pairs, "conditions": synthesize_conditions}
    kind = arguments.pop("kind")
    synthesize, splits = kinds[kind], arguments["split"]
    try:
        if kind != "pairs":
            if len(splits) > 1:
                raise ValueError(f"icve synthesize {kind} takes one --split: run it once for each.")
            arguments["split"] = splits[0]
        written = synthesize(**arguments)
    except (ValueError, OSError) as error:
        print(f"icve synthesize: {error}", file=sys.stderr)
        return 2
    print(written)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="icve synthesize",
        description="Make procedural videos: paired edits with exact targets and masks, or raw videos with cuts.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kind",
        choices=("raw", "pairs", "conditions"),
        help="long raw videos; paired edits; or paired edits that a mask or a reference picture settles",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        choices=(*SPLITS, *HARD_SPLITS),
        default=["test"],
        help="no scene is in two; pairs alone have those harder than test, and take several (default: test)",
    )
    parser.add_argument("--seed", type=int, required=True, help="selects another set of videos")
    count = "number of pairs of each split, or of raw videos (10 to 25 scenes)"
    parser.add_argument("--count", type=int, required=True, help=count)
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--size",
        dest="sizes",
        type=size,
        nargs="+",
        default=[(64, 64)],
        metavar="HxW",
        help="pixels; several take turns (default: 64x64)",
    )
    frames = "per clip (default: 9, of split long 33; 1 makes PNG pictures); raw scenes hold several clips"
    parser.add_argument("--frames", type=int, help=frames)
    parser.add_argument("--fps", type=float, default=8.0, help="frame rate (default: 8)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser


def size(text: str) -> tuple[int, int]:
    """height x width, as in 64x96."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width, as in 64x96.") from None
    return height, width
