"""Arrow files that are mapped into memory, with facts that their schema cannot say.

Behind the Arrow file, in the same file, stand the facts, which are known last: as JSON, whose length is in the last 8
bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

_ROWS = 1 << 14  # of a batch, at least


class ArrowWriter:
    """Writes such a file, batch by batch."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._sink, self.schema = pa.OSFile(str(file), "wb"), schema
        self._arrow = pa.ipc.new_file(self._sink, schema)
        self._pending: list[pa.RecordBatch] = []

    def __enter__(self) -> ArrowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._sink.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows; small batches are joined."""
        self._pending.append(batch)
        if sum(map(len, self._pending)) >= _ROWS:
            self._flush()

    def end(self, facts: dict[str, Any]) -> None:
        """Write what is still to be written."""
        self._flush()
        self._arrow.close()
        text = json.dumps(facts).encode()
        self._sink.write(text + len(text).to_bytes(8, "little"))

    def _flush(self) -> None:
        if self._pending:
            for batch in pa.Table.from_batches(self._pending).combine_chunks().to_batches():
                self._arrow.write_batch(batch)
        self._pending = []


def open_arrow(file: Path) -> tuple[list[pa.RecordBatch], dict[str, Any]] | None:
    """The batches, mapped, and the facts of such a file; None where there is none or it is damaged."""
    try:
        with pa.memory_map(str(file)) as source:
            whole = source.read_buffer()
        end = len(whole) - 8
        start = end - int.from_bytes(whole[end:], "little")
        facts = json.loads(whole[start:end].to_pybytes())
        reader = pa.ipc.open_file(whole[:start])
        return [reader.get_batch(number) for number in range(reader.num_record_batches)], facts
    except (OSError, ValueError, TypeError, IndexError, OverflowError, pa.ArrowException):
        return None
