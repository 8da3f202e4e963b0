"""The tables of a set that is at hand: found, told by their columns, and read in blocks."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from icve.curation.importers.sets import REQUIRED, TARS, PairSet
from icve.curation.importers.tar_pairs import tar_pairs
from icve.data.manifest import ManifestError, relative_path
from icve.data.tables import SUFFIXES, Malformed, Record, read_records

BLOCK = 1024  # records


@dataclass(frozen=True)
class OpenTable:
    """A table of the set, what the manifest calls its columns, and how it is told from others in file names."""

    path: Path
    name: str
    columns: dict[str, str]

    @property
    def slug(self) -> str:
        digest = hashlib.blake2b(self.name.encode(), digest_size=2).hexdigest()
        return f"{re.sub(r'[^0-9A-Za-z]+', '-', self.name).strip('-')[-60:]}-{digest}"


def find_tables(layout: PairSet, source: Path, output: Path, patterns: Sequence[str] | None) -> list[Path]:
    """Tables of a set, in order of their names: ``source`` itself, or what the patterns find below it.

    Args:
        layout: of the set.
        source: the set's folder, or a table.
        output: folder of the results, where no table is looked for.
        patterns: instead of the layout's.

    Raises:
        ManifestError: there is none.
    """
    if source.is_file():
        return [source]
    if absolute := next((pattern for pattern in patterns or () if PurePosixPath(pattern).is_absolute()), None):
        raise ManifestError(f"{absolute} must be a pattern below {source}, as in metadata/*.json.")
    for group in [tuple(patterns)] if patterns else layout.tables:
        found = {path for pattern in group for path in _matches(source, pattern) if path.is_file()}
        own = output.absolute()
        tables = sorted(path for path in found if not path.absolute().is_relative_to(own) and path.name[0] != ".")
        if tables:
            known = {".tar"} if layout.tables is TARS else SUFFIXES
            if wrong := next((path for path in tables if path.suffix.lower() not in known), None):
                raise ManifestError(f"{wrong} is no table: known are {', '.join(sorted(known))}.")
            return tables
    tried = ", ".join(patterns or [pattern for group in layout.tables for pattern in group])
    raise ManifestError(f"There is no table of {layout.title} in {source} (tried {tried}); name it with --tables.")


def _matches(source: Path, pattern: str) -> Iterator[Path]:
    """What a pattern finds below a folder, its suffix in any letter case."""
    suffix = PurePosixPath(pattern).suffix.lower()
    if suffix not in SUFFIXES:
        return source.glob(pattern)
    return (path for path in source.glob(f"{pattern[: -len(suffix)]}.*") if path.suffix.lower() == suffix)


def open_table(path: Path, base: Path, layout: PairSet, columns: Mapping[str, str]) -> OpenTable | None:
    """A table with its column mapping, by its first record; None if it has no records.

    Args:
        path: of the table.
        base: the set's folder.
        layout: of the set.
        columns: names in the table → names in the manifest, over the set's own mapping.

    Raises:
        ManifestError: the table is damaged, lacks a column or holds nothing but malformed records.
    """
    name = relative_path(path, base)
    with contextlib.closing(_records(path, PurePosixPath(name), layout, columns)) as records:
        first, problem = None, ""
        for number, record in enumerate(records, 1):
            if not isinstance(record, Malformed):
                first = record
                break
            problem = problem or f"record {number} {record.why}"
    if first is None:
        if problem:
            raise ManifestError(f"{path} has no record that can be read: {problem}.")
        return None
    missing: list[str] = []
    for theirs in layout.columns:
        own = {column: ours for column, ours in theirs.items() if ours not in columns.values()}
        mapping = own | dict(columns)
        lacking = [column for column in mapping if column not in first]
        if not lacking and not (lacking := [ours for ours in REQUIRED if ours not in mapping.values()]):
            more = {k: v for k, v in layout.more.items() if k in first and v not in columns.values()}
            return OpenTable(path, name, more | mapping)
        missing = missing or lacking
    raise ManifestError(
        f"{path} has no column {', '.join(map(repr, missing))} (it has {', '.join(map(str, first))}): say with "
        "--columns what its columns are, as in video=source_path, or choose other tables with --tables."
    )


def _records(
    path: Path, name: PurePosixPath, layout: PairSet, columns: Mapping[str, str]
) -> Generator[Record | Malformed, None, None]:
    if layout.tables is TARS:
        yield from tar_pairs(path)
        return
    wanted = {*columns, *(theirs for mapping in layout.columns for theirs in mapping), *layout.more}
    for record in read_records(path, layout.header, wanted, binary=False):
        yield record if isinstance(record, Malformed) else layout.complete(record, name)


def blocks(
    tables: Sequence[OpenTable], layout: PairSet, limit: int | None
) -> Iterator[tuple[OpenTable, int, list[Record | Malformed]]]:
    """(table, number of records in it that come before, up to ``BLOCK`` records), in order, ``limit`` records in all.

    Raises:
        ManifestError: a table cannot be read to its end.
    """
    left = limit
    for table in tables:
        records = islice(_records(table.path, PurePosixPath(table.name), layout, table.columns), left)
        start = 0
        while block := list(islice(records, BLOCK)):
            yield table, start, block
            start += len(block)
            left = None if left is None else left - len(block)
        if left == 0:
            return
