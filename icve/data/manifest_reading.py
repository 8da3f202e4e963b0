"""Records of a table that become a manifest's rows, or are rejected one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from icve.data.bulk_checks import TYPES, check_batch, line_types, records_batch
from icve.data.manifest_table import RejectedRow
from icve.data.rows import id_of_rejected, names_of_root, row_checker
from icve.data.tables import Columns, Malformed, ManifestError, Record, read_blocks


class Reading:
    """What was read of a manifest so far.

    ``present`` are its columns by its own names, ``names`` by those used here, both in order. Unless one
    is ``readable``, ``malformed`` says what is wrong with the first record.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        columns: Mapping[str, str],
        kept: Collection[str] | None,
        store: Callable[[pa.RecordBatch], object],
    ) -> None:
        self.path, self.root, self.columns, self.kept, self.store = path, root, columns, kept, store
        self.folders = functools.cache(lambda: names_of_root(root))
        self.empty = "" if path.suffix.lower() in (".csv", ".tsv") else None  # cell
        self.present: dict[str, None] = {}
        self.names: dict[str, None] = {}
        self.rejected: list[RejectedRow] = []
        self.records = 0
        self.malformed = ""
        self.readable = False

    def keeps(self, name: str) -> bool:
        return self.kept is None or name in self.kept

    def read(self, part: Path, wanted: Collection[str]) -> None:
        only = None
        if part.suffix.lower() == ".parquet":
            theirs = pq.read_schema(part).names
            self._note(theirs)
            if self.kept is not None:
                only = [name for name in theirs if self.keeps(self.columns.get(name, name))]
        types = None if self.kept is None else partial(line_types, columns=self.columns, keeps=self.keeps)
        for block in read_blocks(part, wanted, only, types):
            length = len(block.batch if isinstance(block, Columns) else block)
            numbers = np.arange(self.records + 1, self.records + length + 1)
            self.records += length
            if isinstance(block, Columns):
                self._add_columns(block, numbers)
            else:
                self._add_records(block, numbers)

    def _note(self, theirs: Iterable[str]) -> None:
        self.present |= dict.fromkeys(theirs)
        self.names = dict.fromkeys(self.columns.get(name, name) for name in self.present)

    def _add_columns(self, block: Columns, numbers: np.ndarray) -> None:
        batch = block.batch
        self._note(batch.schema.names)
        ours = {name: self.columns.get(name, name) for name in batch.schema.names}
        place = {name: at for at, name in enumerate(ours.values())}
        fields = [batch.schema.field(at).with_name(name) for name, at in place.items()]
        batch = pa.RecordBatch.from_arrays([batch.column(at) for at in place.values()], schema=pa.schema(fields))
        self.readable = True
        odd = np.zeros(len(batch), dtype=bool)
        self._check(batch, odd, numbers, lambda at: {ours[name]: cell for name, cell in block.record(at).items()})

    def _add_records(self, block: Sequence[Record | Malformed], numbers: np.ndarray) -> None:
        records: list[Record] = []
        places: list[int] = []
        for at, record in enumerate(block):
            if isinstance(record, Malformed):
                why = _sentence(record, int(numbers[at]), self.path)
                self.malformed = self.malformed or why
                self.rejected.append(RejectedRow(int(numbers[at]), id_of_rejected(record), why, {}))
            else:
                records.append(record)
                places.append(at)
        if records:
            self.readable = True
            self._note(name for names in dict.fromkeys(map(tuple, records)) for name in names)
            if self.columns or self.empty is not None:
                ours = {name: self.columns.get(name, name) for name in self.present}
                records = [
                    {ours[name]: None if cell == self.empty else cell for name, cell in record.items()}
                    for record in records
                ]
            batch, odd = records_batch(records, list(self.names))
            self._check(batch, odd, numbers[places], records.__getitem__)

    def _check(
        self, batch: pa.RecordBatch, odd: np.ndarray, numbers: np.ndarray, record_at: Callable[[int], Record]
    ) -> None:
        """Add a batch, whose odd rows are checked one by one."""
        columns, more = check_batch(batch, self.folders)
        odd = odd | more
        check = row_checker(list(self.names), self.path, self.root)
        places, rows, bad = [], [], []
        for at in np.flatnonzero(odd).tolist():
            cells, number = record_at(at), int(numbers[at])
            try:
                rows.append(check(cells, number))
                places.append(at)
            except ManifestError as error:
                bad.append(at)
                self.rejected.append(RejectedRow(number, id_of_rejected(cells), str(error), cells))
        own = {name: batch.column(at) for at, name in enumerate(batch.schema.names) if self.keeps(name)} | columns
        if rows:
            order = np.arange(len(batch))
            order[places] = len(batch) + np.arange(len(rows))
            for name, column in columns.items():
                values = pa.array([row[name] for row in rows], column.type)
                own[name] = pa.concat_arrays([column, values]).take(pa.array(order))
        fields = [
            batch.schema.field(name) if name in batch.schema.names and name not in TYPES else (name, column.type)
            for name, column in own.items()
        ]
        checked = pa.RecordBatch.from_arrays(list(own.values()), schema=pa.schema(fields))
        if bad:
            good = np.ones(len(batch), dtype=bool)
            good[bad] = False
            checked = checked.filter(pa.array(good))
        self.store(checked)


def _sentence(record: Malformed, number: int, path: Path) -> str:
    return f"{f'Row {number}' if record.line is None else f'Line {record.line}'} of {path} {record.why}."
