"""Time one batch of edits against one launch of `icve edit` per edit, in the same run.

    python tools/bench_edit.py                 # 16 edits on 4 synthetic sources, the shipped editor

Both do the same work with the same command; the batch starts once, decodes and encodes every source once and fills
batches. The summary's seconds say where the batch's time goes (threads overlap, so they add up to more than its wall
time).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from icve.data.manifest import read_manifest, write_manifest
from icve.editing.jobs import KINDS
from icve.synthetic.pair_files import synthesize_pairs


def launch(*options: object) -> tuple[dict, float]:
    """Run `icve edit`; returns its summary and the wall time of the whole command."""
    command = [sys.executable, "-m", "icve.cli.edit", *map(str, options)]
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1]), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="run, checkpoint or model folder (default: the shipped editor)")
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--edits", type=int, default=4, help="instructions per source")
    parser.add_argument("--frames", type=int, default=9, help="per source")
    args = parser.parse_args()
    model = ["--model", args.model] if args.model else []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pairs = read_manifest(synthesize_pairs(folder / "data", 6 * args.sources, seed=77, frames=args.frames))
        sources = [pairs[6 * number]["source_path"] for number in range(args.sources)]
        words = [row["instruction"] for row in pairs[: args.edits]]
        rows = [{"source_path": path, "instruction": text} for path in sources for text in words]
        manifest = write_manifest(rows, folder / "data" / "edits.jsonl")
        launch(*model, "--input", manifest, "--output", folder / "warm", "--shard", f"1/{args.sources}")
        summary, batch = launch(*model, "--input", manifest, "--output", folder / "batch")
        assert summary["edited"] == len(rows)
        single = 0.0
        for number, row in enumerate(rows):
            source, output = folder / "data" / row["source_path"], folder / "single" / str(number)
            single += launch(*model, "--input", source, "--instruction", row["instruction"], "--output", output)[1]
    print(f"| {len(rows)} edits on {args.sources} sources | seconds | against single launches |")
    print("|---|---|---|")
    print(f"| one batch | {batch:.1f} | {single / batch:.1f}x faster |")
    print(f"| {len(rows)} launches | {single:.1f} | |")
    work = sum(summary[f"seconds_{kind}"] for kind in KINDS)
    shares = ", ".join(f"{kind} {summary[f'seconds_{kind}'] / work:.0%}" for kind in KINDS)
    print(f"\nOf the batch's work after loading ({summary['seconds']:.1f} s): {shares}.")


if __name__ == "__main__":
    main()
