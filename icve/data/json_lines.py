"""JSON lines as Arrow columns, without a Python object per record."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.json

_DEEPEST = 64  # brackets of a line: what nests deeper is read elsewhere, under Python's limit

# The types of the columns that are wanted, from their first record; None where it is none that columns can hold.
Types = Callable[[dict[str, Any]], pa.Schema | None]


def typed_batch(block: bytes, types: Types) -> pa.RecordBatch | None:
    """Whole lines as columns, one row a line; columns that are not wanted have any type.

    Returns None unless every line is an object whose wanted columns have the types of the first one's.
    """
    block = block if block.endswith(b"\n") else block + b"\n"
    lines = block.count(b"\n")
    # Arrow takes objects one after the other, wherever they stand: with these ends, each stands on a line of its own.
    if not block.startswith(b"{") or not block.endswith(b"}\n") or block.count(b"}\n{") != lines - 1:
        return None
    if block.count(b"{") + block.count(b"[") > lines + _DEEPEST and any(
        line.count(b"{") + line.count(b"[") > _DEEPEST for line in block.splitlines()
    ):
        return None
    try:
        if not block.isascii():
            block.decode()
        first = json.loads(block[: block.index(b"\n")])
        if (schema := types(first)) is None:
            return None
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema),
        )
    except (ValueError, RecursionError, pa.ArrowException):
        return None
    later = [name for name in table.column_names if name not in first]
    if len(table) != lines or types(dict.fromkeys(later)):
        return None
    (batch,) = table.select([*first, *later]).combine_chunks().to_batches()
    return batch
