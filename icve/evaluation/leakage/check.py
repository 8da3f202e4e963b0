"""Test data compared with training data, and what is written and said of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from rich.console import Console

from icve.evaluation.leakage.clips import find_clips
from icve.evaluation.leakage.hashing import hash_clips
from icve.evaluation.leakage.matching import Match, find_matches
from icve.runtime.atomic import whole_file, write_text
from icve.runtime.printable import as_text
from icve.runtime.process_pools import counting_bar

EVERY_TRAIN, EVERY_TEST = 0.5, 0.125  # seconds between the frames looked at
_SHOWN = 20  # rows of the table
_SCHEMA = pa.schema(  # a file without matches has its columns too
    {
        **{"test_path": pa.string(), "test_start": pa.int64(), "test_seconds": pa.float64()},
        **{"train_path": pa.string(), "train_start": pa.int64(), "train_seconds": pa.float64()},
        **{"matched_seconds": pa.float64(), "score": pa.float64()},
    }
)


@dataclass(frozen=True)
class Leakage:
    """``matches`` of ``tests`` test clips among ``trains`` training clips, a sentence for each ``broken`` video, and
    how many clips ``blank`` have no frame with enough in it to be told by.
    """

    matches: list[Match]
    trains: int
    tests: int
    broken: list[str]
    blank: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for every match, to be written."""
        return [
            {
                **{"test_path": as_text(str(match.test.file)), "test_start": match.test.start},
                **{"test_seconds": round(match.test_seconds, 3)},
                **{"train_path": as_text(str(match.train.file)), "train_start": match.train.start},
                **{"train_seconds": round(match.train_seconds, 3)},
                **{"matched_seconds": round(match.seconds, 3), "score": round(match.score, 4)},
            }
            for match in self.matches
        ]


def check_leakage(train: str, test: str, hashes: str | None = None, workers: int = 1) -> Leakage:
    """Compare the clips of two manifests, folders or videos.

    Args:
        train, test: manifest, folder of videos, or video; also URLs.
        hashes: Parquet file to keep hashes in and take them from.
        workers: threads, each decoding a video.

    Raises:
        ValueError, OSError: something is not there, cannot be read or written.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}.")
    file = None if hashes is None else Path(hashes)
    found = [find_clips(path) for path in (train, test)]
    broken = [sentence for clips in found for sentence in clips.broken]
    made = []
    for clips, every, kind in zip(found, (EVERY_TRAIN, EVERY_TEST), ("training", "test"), strict=True):
        hashed, unreadable = hash_clips(clips.clips, every, file, workers, f"Hashing {kind} clips")
        made.append(hashed)
        broken += unreadable
    with counting_bar("Comparing", Console(stderr=True)) as bar:

        def track(steps: Iterable[int], total: int) -> Iterable[int]:
            return bar.track(steps, total=total)

        matches = find_matches(made[0], made[1], track)
    blank = sum(int((hashed.first[1:] == hashed.first[:-1]).sum()) for hashed in made)
    return Leakage(matches, len(made[0].clips), len(made[1].clips), list(dict.fromkeys(broken)), blank)


def check_suffix(file: Path) -> None:
    """Raises ValueError for a name that :func:`write_rows` does not take."""
    if file.suffix.lower() not in (".parquet", ".jsonl", ".json"):
        raise ValueError(f"--output must end in .parquet, .jsonl or .json, not {file.name}.")


def write_rows(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write rows as .parquet, .jsonl or .json, whole or not at all. Raises OSError."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        with whole_file(file) as temporary:
            parquet.write_table(pa.Table.from_pylist(list(rows), _SCHEMA), temporary)
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(file, lines if suffix == ".jsonl" else json.dumps(rows, ensure_ascii=False, indent=2) + "\n")


def summary(leakage: Leakage) -> str:
    """What was found, as plain text: a table of the best matches, then the counts."""
    lines = [f"{'score':>6}{'seconds':>9}  test clip  <-  training clip"] if leakage.matches else []
    for row in leakage.rows[:_SHOWN]:
        places = [
            f"{row[f'{role}_path']} at {row[f'{role}_seconds']:.1f} s"
            + (f" (clip from frame {row[f'{role}_start']})" if row[f"{role}_start"] else "")
            for role in ("test", "train")
        ]
        lines.append(f"{row['score']:>6.2f}{row['matched_seconds']:>9.1f}  {places[0]}  <-  {places[1]}")
    if (more := len(leakage.matches) - _SHOWN) > 0:
        lines.append(f"... and {more} more; --output FILE writes them all")
    leaked = len({match.test for match in leakage.matches})
    lines.append(f"{leaked} of {leakage.tests} test clips are in the training data ({leakage.trains} clips).")
    if leakage.blank:
        lines.append(f"{leakage.blank} clips hold nothing to compare: all their frames are nearly of one colour.")
    return "\n".join(lines)
