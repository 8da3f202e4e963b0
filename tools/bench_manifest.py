"""Cost of starting on a large manifest: CPU seconds until the first batch can be drawn, and memory of every rank.

    python tools/bench_manifest.py --rows 1000000
    python tools/bench_manifest.py --rows 1000000 --peer ../other_checkout      # its code on the same files, in turns
    python tools/bench_manifest.py --rows 10000000

Synthetic rows that state size, length and rate; no video is opened. `first` is the process that finds no index beside
the manifest, `next` one that comes after it, as every further rank of a machine does. CPU seconds (user and system) are
those of setting the data module up and of drawing the first batch, after imports. Memory is private (USS) and
proportional (PSS), what setting up added, of which `own` is of no file, so that the processes of a machine do not share
it, and its peak (growth of the resident set's peak, shared pages included).
Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BUCKETS = [[480, 768, 77], [768, 480, 77], [480, 768, 33]]
_BLOCK = 100_000
_RANK = """
import json, resource, sys, time
import numpy, torch, pyarrow
from icve.data.paired_edits import PairedEditsDataModule
manifest, buckets = sys.argv[1], json.loads(sys.argv[2])

def memory():
    lines = [line.split() for line in open("/proc/self/smaps_rollup")]
    kilobytes = {words[0]: int(words[1]) for words in lines if words[-1] == "kB"}
    return kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"], kilobytes["Pss:"], kilobytes["Anonymous:"]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before, peak_before, began = memory(), peak(), time.process_time()
module = PairedEditsDataModule(manifest, buckets, 8)
module.setup("fit")
loader = module.train_dataloader()
draws = next(iter(loader.batches))
seconds = time.process_time() - began
after = memory()
pairs = [loader.dataset.selection.pairs[draw.row].id for draw in draws]
print(json.dumps({
    "seconds": seconds, "uss": (after[0] - before[0]) / 1024, "pss": (after[1] - before[1]) / 1024,
    "own": (after[2] - before[2]) / 1024, "peak": (peak() - peak_before) / 1024, "whole": after[0] / 1024, "ids": pairs,
}))
"""


def write_rows(path: Path, rows: int) -> None:
    """A manifest of that many rows without ids, as Parquet or JSON lines."""
    writer = None
    with path.open("wb") as file:
        for start in range(0, rows, _BLOCK):
            numbers = np.arange(start, min(rows, start + _BLOCK))
            names = pa.array(numbers).cast(pa.string())
            wide = numbers % 3 > 0

            def text(*parts: str | pa.Array) -> pa.Array:
                return pc.binary_join_element_wise(*parts, "")

            folder = pc.utf8_slice_codeunits(names, -3)
            table = pa.table(
                {
                    "source_path": text("videos/", folder, "/source-", names, ".mp4"),
                    "target_path": text("videos/", folder, "/target-", names, ".mp4"),
                    "instruction": text("replace the red car on the left with a blue one, number ", names),
                    "edit_type": pa.repeat("replace", len(names)),
                    "width": np.where(wide, 1280, 720),
                    "height": np.where(wide, 720, 1280),
                    "frames": 40 + numbers % 200,
                    "fps": np.full(len(numbers), 24.0),
                    "caption": text("a street in the morning, seen from above, take ", names),
                }
            )
            if path.suffix == ".parquet":
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table)
            else:
                file.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())
        if writer is not None:
            writer.close()


def start(manifest: Path, code: Path) -> dict:
    """What a process that trains on the manifest needs until its first batch, with the code of a checkout."""
    command = [sys.executable, "-c", _RANK, str(manifest), json.dumps(BUCKETS)]
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=code, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=("parquet", "jsonl"), default=("parquet", "jsonl"))
    parser.add_argument("--peer", type=Path, help="another checkout, whose code is measured too")
    parser.add_argument("--folder", type=Path, help="where the manifests are made (default: temporary)")
    arguments = parser.parse_args()

    own = Path(__file__).resolve().parents[1]
    print(f"{arguments.rows} rows\n| manifest | code | process | CPU s | ratio | USS MB | PSS MB | own MB | peak MB |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for suffix in arguments.formats:
            manifest = Path(scratch, f"rows.{suffix}")
            write_rows(manifest, arguments.rows)
            runs = [("icve", "first", own), ("icve", "next", own)]
            if arguments.peer is not None:
                runs.insert(0, ("peer", "each", arguments.peer.resolve()))
            peer = drawn = None
            for name, process, code in runs:
                figures = start(manifest, code)
                drawn = drawn or figures["ids"]
                if drawn != figures["ids"]:
                    raise SystemExit(f"Other pairs were drawn: {figures['ids']}, not {drawn}.")
                peer = figures["seconds"] if name == "peer" else peer
                ratio = f"{figures['seconds'] / peer:.3f}" if peer else ""
                memory = " | ".join(f"{figures[key]:.0f}" for key in ("uss", "pss", "own", "peak"))
                print(f"| {suffix} | {name} | {process} | {figures['seconds']:.2f} | {ratio} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
