"""Tables of any length, record by record: JSON lists, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from icve.data.manifest import ManifestError

Record = dict[str, Any]

SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})

_CHUNK = 1 << 20  # characters read at a time
_BETWEEN = re.compile(r"[\s,\[\]]*")  # what stands between the records of a JSON file


@dataclass(frozen=True)
class Malformed:
    """What stands in the place of a record, and why it is none."""

    given: Any
    why: str


def read_records(path: Path, header: Sequence[str] = (), wanted: Collection[str] = ()) -> Iterator[Record | Malformed]:
    """The records of a table in their order, of which only a few are in memory at a time.

    Args:
        path: ``.json`` (a list of objects, also of lists of objects, or one object after the other), ``.jsonl``,
            ``.csv``, ``.tsv`` or ``.parquet``. Binary columns of Parquet are left out.
        header: names of a CSV's first columns in their order, for files whose own header names nothing.
        wanted: names that a CSV's header may hold, which tell its delimiter: a comma, semicolon, tab or bar.

    Raises:
        ManifestError: the file cannot be read to its end; the records before have been given by then.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ManifestError(f"{path} is no table: known are {', '.join(sorted(SUFFIXES))}.")
    try:
        if suffix == ".parquet":
            yield from _parquet(path)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(path, header, wanted)
        else:
            yield from _json(path)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text (byte {error.start} of a block).") from error
    except csv.Error as error:
        raise ManifestError(f"{path} is not readable as CSV ({error}).") from error
    except pa.ArrowException as error:
        raise ManifestError(f"{path} is not readable Parquet ({str(error).splitlines()[0]}).") from error


def _json(path: Path) -> Iterator[Record | Malformed]:
    decoder = json.JSONDecoder()
    text, at, depth, ended, count = "", 0, 0, False, 0
    with path.open(encoding="utf-8-sig") as file:
        while True:
            between = _BETWEEN.match(text, at)
            depth += between.group().count("[") - between.group().count("]")
            at = between.end()
            if at < len(text):
                try:
                    value, end = decoder.raw_decode(text, at)
                except json.JSONDecodeError as error:
                    if ended:
                        raise ManifestError(
                            f"{path} is cut off or damaged: it is not JSON after its record {count} ({error.msg})."
                        ) from error
                else:
                    # A number at the end of what was read may go on.
                    if end < len(text) or ended or isinstance(value, (dict, str)):
                        at, count = end, count + 1
                        yield value if isinstance(value, dict) else Malformed(value, "not an object")
                        continue
            elif ended:
                if depth:
                    raise ManifestError(f"{path} is cut off: its list does not end after record {count}.")
                return
            # As much again as is pending: a long record is not decoded from its start again and again.
            more = file.read(max(_CHUNK, len(text) - at))
            text, at, ended = text[at:] + more, 0, not more


def _csv(path: Path, header: Sequence[str], wanted: Collection[str]) -> Iterator[Record | Malformed]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = _delimiter(file.readline(), wanted)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        own = [name.strip() for name in next(reader, [])]
        names = list(header) or own
        for cells in reader:
            if not cells:
                continue  # an empty line
            if len(cells) < len(names) or (not header and len(cells) > len(names)):
                yield Malformed(cells, f"{len(cells)} cells where {len(names)} columns are known")
            else:
                yield {name: cell for name, cell in zip(names, cells, strict=False) if name}


def _delimiter(line: str, wanted: Collection[str]) -> str:
    """The delimiter that gives the most of the names wanted, and of those the one that gives the most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([line], delimiter=delimiter), [])
        return len({cell.strip() for cell in cells}.intersection(wanted)), len(cells)

    return max(",;\t|", key=found)


def _parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        names = [
            field.name
            for field in file.schema_arrow
            if not (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
        ]
        for batch in file.iter_batches(batch_size=512, columns=names):
            yield from batch.to_pylist()
