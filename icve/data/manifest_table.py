"""The rows of a manifest as Arrow columns, which are a row's dictionary where one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa

from icve.data.bulk_checks import TYPES, records_batch
from icve.data.cells import table_rows
from icve.data.rows import Row

_AT_ONCE = 512  # rows made at a time by who goes through all of them


@dataclass(frozen=True)
class RejectedRow:
    """A record of a table that is no row of the manifest.

    ``number`` is its place in the table, from 1; ``row`` its columns as far as there are any; ``reason`` a sentence.
    """

    number: int
    id: str
    reason: str
    row: Row


class Manifest(Sequence[Row]):
    """Rows of a manifest, the folder their paths are relative to, and the records that are no rows.

    It is a sequence of rows, each a new dictionary: what is changed in one is changed nowhere else. Its columns are in
    :attr:`batches`, Arrow record batches one after the other, whose columns may differ; those of
    :data:`icve.data.bulk_checks.TYPES` have that type in all of them.

    Args:
        rows: of the manifest.
        root: folder that paths are relative to.
        rejected: records that are no rows.
    """

    def __init__(self, rows: Iterable[Row], root: Path, rejected: Iterable[RejectedRow] = ()) -> None:
        given = list(rows)
        names = list(dict.fromkeys(name for row in given for name in row))
        self._hold([records_batch(given, names)[0]] if given else [], names, root, rejected)

    @classmethod
    def of_batches(
        cls,
        batches: Sequence[pa.RecordBatch],
        names: Sequence[str],
        root: Path,
        rejected: Iterable[RejectedRow] = (),
        path: Path | None = None,
    ) -> Self:
        """A manifest of columns.

        Args:
            batches: the rows.
            names: columns that every row has, in their order.
            root, rejected: as for a manifest of rows.
            path: where it was read.
        """
        manifest = cls.__new__(cls)
        manifest._hold(batches, names, root, rejected, path)
        return manifest

    def _hold(
        self,
        batches: Sequence[pa.RecordBatch],
        names: Sequence[str],
        root: Path,
        rejected: Iterable[RejectedRow],
        path: Path | None = None,
    ) -> None:
        self.batches, self.names, self.root = [batch for batch in batches if len(batch)], tuple(names), root
        self.rejected, self.path = list(rejected), path
        self.starts = np.cumsum([0, *map(len, self.batches)])  # of each batch, and at last the number of rows

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...

    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        batch = int(np.searchsorted(self.starts, place, "right")) - 1
        return self._rows(self.batches[batch].slice(place - int(self.starts[batch]), 1))[0]

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches:
            for start in range(0, len(batch), _AT_ONCE):
                yield from self._rows(batch.slice(start, _AT_ONCE))

    def batches_at(self, numbers: np.ndarray, size: int = 1 << 16) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows of these numbers, (N,) ascending, as batches; with the place in ``numbers`` at which each begins."""
        for start, batch in zip(self.starts.tolist(), self.batches, strict=False):
            first, end = np.searchsorted(numbers, (start, start + len(batch))).tolist()
            for at in range(first, end, size):
                yield at, batch.take(pa.array(numbers[at : min(end, at + size)] - start))

    def rows_at(self, numbers: np.ndarray) -> Iterator[Row]:
        """The rows of these numbers, (N,) ascending."""
        for _, batch in self.batches_at(numbers, _AT_ONCE):
            yield from self._rows(batch)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_equal, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        return f"<Manifest of {len(self)} rows and {len(self.rejected)} rejected records, root {self.root}>"

    def _rows(self, batch: pa.RecordBatch) -> list[Row]:
        nothing = dict.fromkeys(self.names)
        return [nothing | row for row in table_rows(batch)]

    def part(self, number: int, of: int) -> Manifest:
        """Every ``of``-th row and rejected record, from the ``number``-th (from 1) on."""
        batches = []
        for start, batch in zip(self.starts.tolist(), self.batches, strict=False):
            first = (number - 1 - start) % of
            batches.append(batch.take(pa.array(np.arange(first, len(batch), of))))
        return Manifest.of_batches(batches, self.names, self.root, self.rejected[number - 1 :: of], self.path)


def batch_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of :data:`icve.data.bulk_checks.TYPES` of some rows, of nulls where they have none."""
    place = batch.schema.get_field_index(name)
    return pa.nulls(len(batch), TYPES[name]) if place < 0 else batch.column(place)


def _equal(row: Any, other: Any) -> bool:
    return bool(row == other)
