"""Tables of any length, record by record: JSON lists, JSON lines, CSV and Parquet. Every command reads them here."""

from __future__ import annotations

import codecs
import csv
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from icve.data.cells import table_rows
from icve.data.json_lines import Types, typed_batch

Record = dict[str, Any]

SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})  # in any letter case

_CHUNK = 1 << 20  # characters read at a time
_BLOCK, _BATCH = 8192, 1 << 16  # records at a time, of text and of Parquet
_LINES = 1 << 22  # bytes of lines that become columns at a time
_CELL = (1 << 31) - 1  # characters of a CSV cell: the most that a C long holds everywhere
_BETWEEN = re.compile(r"[\s,\[\]\ufeff]*")  # what stands between the records of a JSON file
_decode = json.JSONDecoder().raw_decode
_SURROGATE = re.compile("[\ud800-\udfff]")


class ManifestError(ValueError):
    """A table or manifest that cannot be used, in one sentence."""


@dataclass(frozen=True)
class Malformed:
    """What stands in the place of a record, and why it is none: ``why`` goes on from "Line 3 of the table".

    ``line`` is its line in the file, where records are lines.
    """

    given: Any
    why: str
    line: int | None = None


def read_records(
    path: Path, header: Sequence[str] = (), wanted: Collection[str] = (), binary: bool = True
) -> Iterator[Record | Malformed]:
    """The records of a table in their order, of which only a few are in memory at a time.

    Text is UTF-8, with or without a byte order mark, or UTF-16. What is not text in it costs the record it stands in.
    Cells of a CSV are text, an empty one "".

    Args:
        path: ``.json`` (a list of objects, also of lists of objects, or one object after the other), ``.jsonl`` (lines
            end at a line feed and nowhere else), ``.csv``, ``.tsv`` or ``.parquet``.
        header: names of a CSV's first columns in their order, for files whose own header names nothing.
        wanted: names that a CSV's header may hold, which tell its delimiter: a comma, semicolon, tab or bar.
        binary: also columns of Parquet that hold bytes.

    Raises:
        ManifestError: the file cannot be read to its end; the records before have been given by then.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ManifestError(f"{path} is no table: known are {', '.join(sorted(SUFFIXES))}.")
    with _readable(path):
        if suffix == ".parquet":
            for batch in _parquet_batches(path, lambda field: binary or not _is_binary(field.type), 512):
                yield from table_rows(batch)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(path, header, wanted)
        elif _holds_lines(path):
            yield from _lines(path)
        else:
            yield from _json(path)


class Columns(NamedTuple):
    """Records as columns, in any types, and what gives one of them by its place."""

    batch: pa.RecordBatch
    record: Callable[[int], Record]


def read_blocks(
    path: Path, wanted: Collection[str] = (), only: Collection[str] | None = None, types: Types | None = None
) -> Iterator[list[Record | Malformed] | Columns]:
    """The records of a table as :func:`read_records`, some thousands at a time, and those of Parquet as columns.

    Args:
        path, wanted: as there.
        only: names of the columns of Parquet that are read; None reads all.
        types: reads plain JSON lines as columns too, of which only those with a type here keep their values exactly.

    Raises:
        ManifestError: as there.
    """
    suffix = path.suffix.lower()
    if types is not None and suffix in (".json", ".jsonl", ".ndjson"):
        with _readable(path):
            if _encoding(path).startswith("utf-8") and _holds_lines(path):
                yield from _line_blocks(path, types)
                return
    if suffix != ".parquet":
        records = read_records(path, wanted=wanted)
        while block := list(islice(records, _BLOCK)):
            yield block
        return
    with _readable(path):
        for batch in _parquet_batches(path, lambda field: only is None or field.name in only, _BATCH):
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                raise ManifestError(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
            yield Columns(batch, partial(_row_of, batch))


def _row_of(batch: pa.RecordBatch, place: int) -> Record:
    return table_rows(batch.slice(place, 1))[0]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises ManifestError for what reading a table may raise."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is cut off or damaged: it is not {error.encoding} text to its end.") from error
    except csv.Error as error:
        raise ManifestError(f"{path} is not readable as CSV ({error}).") from error
    except pa.ArrowException as error:
        raise ManifestError(f"{path} is not readable Parquet ({str(error).splitlines()[0]}).") from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror or error}).") from error


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start[:2]:  # a table begins with an ASCII character
        return "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    return "utf-8-sig"


def _open(path: Path, newline: str = "\n") -> TextIO:
    """A file as text. Bytes that are none become lone surrogates, for `_not_text` to find."""
    encoding = _encoding(path)
    errors = "surrogateescape" if encoding == "utf-8-sig" else "surrogatepass"
    return path.open(encoding=encoding, errors=errors, newline=newline)


def _not_text(path: Path, text: str) -> str | None:
    """Why a piece of a file is no text, and what to do; None if it is."""
    found = _SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found.group())
    if not 0xDC80 <= code <= 0xDCFF:
        return f"holds half a character (U+{code:04X}): write it as whole UTF-8 text"
    byte = f"byte 0x{code - 0xDC00:02X}"
    try:
        text.encode("utf-8", "surrogateescape").decode("cp1252")
    except ValueError:
        return f"is not UTF-8 text ({byte}), nor cp1252: save the table as UTF-8"
    command = shlex.join(["iconv", "-f", "cp1252", "-t", "utf-8", str(path)])
    to = shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))
    return f"is not UTF-8 text ({byte}) but looks like cp1252: save the table as UTF-8, with `{command} > {to}`"


def _holds_lines(path: Path) -> bool:
    """Whether a JSON file has an object on each line, rather than a list or objects over several lines."""
    with _open(path) as file:
        head = file.read(_CHUNK).lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        # Damaged or longer than what was read: a file of lines loses this one alone.
        return path.suffix.lower() != ".json" and head.partition("\n")[0].strip() != "{"
    return "\n" not in head[:end] and not head[end:].partition("\n")[0].strip(" \t\r,")


def _lines(path: Path) -> Iterator[Record | Malformed]:
    with _open(path) as file:
        yield from _records(path, file, 1)


def _line_blocks(path: Path, types: Types) -> Iterator[list[Record | Malformed] | Columns]:
    number = 1
    with path.open("rb") as file:
        while block := file.read(_LINES) + file.readline():
            if (batch := typed_batch(block, types)) is None:
                text = block.decode("utf-8", "surrogateescape")
                yield list(_records(path, text.removesuffix("\n").split("\n"), number))
            else:
                yield _line_columns(batch, block)
            number += block.count(b"\n")


def _line_columns(batch: pa.RecordBatch, block: bytes) -> Columns:
    lines = cache(partial(block.split, b"\n"))
    return Columns(batch, lambda place: json.loads(lines()[place]))


def _records(path: Path, lines: Iterable[str], number: int) -> Iterator[Record | Malformed]:
    """The records of lines of JSON, of which the first has this number; empty ones are passed over."""
    for place, line in enumerate(lines, number):
        if (record := _record(path, line, place)) is not None:
            yield record


def _record(path: Path, line: str, number: int) -> Record | Malformed | None:
    text = line.strip("\ufeff \t\r\n").rstrip(", \t")
    if not text:
        return None
    if not text.isascii() and (why := _not_text(path, text)):
        return Malformed(text, why, number)
    try:
        value, end = _decode(text)
        value = value if end == len(text) else json.loads(text)  # which says what is wrong
    except json.JSONDecodeError as error:
        return Malformed(text, f"is not JSON ({error.msg} at column {error.colno})", number)
    except (ValueError, RecursionError) as error:
        return Malformed(text, f"is not JSON that can be read ({error})", number)
    return value if isinstance(value, dict) else Malformed(value, "is not a JSON object", number)


def _json(path: Path) -> Iterator[Record | Malformed]:
    decoder = json.JSONDecoder()
    text, at, depth, ended, count = "", 0, 0, False, 0
    with _open(path) as file:
        while True:
            if between := _BETWEEN.match(text, at):  # always, be it of nothing
                depth += between.group().count("[") - between.group().count("]")
                at = between.end()
            if at < len(text):
                try:
                    value, end = decoder.raw_decode(text, at)
                except json.JSONDecodeError as error:
                    if ended:
                        why = _not_text(path, text[at:]) or f"is cut off or damaged: not JSON ({error.msg})"
                        raise ManifestError(f"{path}, after its record {count}, {why}.") from error
                except (ValueError, RecursionError) as error:
                    raise ManifestError(f"{path} cannot be read after its record {count} ({error}).") from error
                else:
                    # A number at the end of what was read may go on.
                    if end < len(text) or ended or isinstance(value, (dict, str)):
                        count += 1
                        if not isinstance(value, dict) or _SURROGATE.search(text, at, end):
                            yield Malformed(value, _not_text(path, text[at:end]) or "is not a JSON object")
                        else:
                            yield value
                        at = end
                        continue
            elif ended:
                if depth:
                    raise ManifestError(f"{path} is cut off: its list does not end after record {count}.")
                return
            # As much again as is pending: a long record is not decoded from its start again and again.
            more = file.read(max(_CHUNK, len(text) - at))
            text, at, ended = text[at:] + more, 0, not more


def _csv(path: Path, header: Sequence[str], wanted: Collection[str]) -> Iterator[Record | Malformed]:
    csv.field_size_limit(_CELL)  # of the process: the module has no other
    with _open(path, newline="") as file:
        first = next((line for line in file if line.strip()), "")
        if why := _not_text(path, first):
            raise ManifestError(f"The header of {path} {why}.")
        delimiter = _delimiter(first, wanted)
        file.seek(0)
        lines: list[str] = []  # of the record in progress
        reader = csv.reader(_noted(file, lines), delimiter=delimiter)
        own = [name.strip() for name in next((cells for cells in reader if cells), [])]
        names = list(header) or own
        if repeated := next((name for name in names if name and names.count(name) > 1), None):
            raise ManifestError(f"{path} has two columns {repeated!r}: rename one of them.")
        while True:
            lines.clear()
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cells):
                continue  # an empty line, or one of delimiters
            if why := _not_text(path, "".join(lines)):
                yield Malformed(cells, why)
            elif len(lines) > 1 and _is_open(lines, delimiter):
                yield Malformed(cells, f"begins a quotation that does not end, over {len(lines)} lines")
            elif len(cells) < len(names) or (not header and len(cells) > len(names)):
                yield Malformed(cells, f"has another number of cells than the header ({len(cells)}, not {len(names)})")
            else:
                yield {name: cell for name, cell in zip(names, cells, strict=False) if name}


def _noted(file: TextIO, lines: list[str]) -> Iterator[str]:
    """The lines of a file, each also added to a list."""
    for line in file:
        lines.append(line)
        yield line


def _is_open(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the file ended inside quotation marks: what they swallowed is no cell."""
    try:
        list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def _delimiter(line: str, wanted: Collection[str]) -> str:
    """The delimiter that gives the most of the names wanted, and of those the one that gives the most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([line], delimiter=delimiter), [])
        return len({cell.strip() for cell in cells}.intersection(wanted)), len(cells)

    return max(",;\t|", key=found)


def _parquet_batches(path: Path, wanted: Callable[[pa.Field], bool], rows: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if repeated := next((name for name in schema.names if schema.names.count(name) > 1), None):
            raise ManifestError(f"{path} has two columns {repeated!r}: rename one of them.")
        names = [field.name for field in schema if wanted(field)]
        # A list of names would be taken for paths into nested columns.
        for batch in file.iter_batches(batch_size=rows, columns=None if len(names) == len(schema) else names):
            yield batch.select(names)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
