"""Blocks of an import on disk: kept rows and rejected records, one Parquet part each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from icve.curation.importers.open_tables import OpenTable
from icve.curation.importers.set_rows import as_text
from icve.curation.importers.sets import REQUIRED
from icve.curation.stage import Rejected, Row
from icve.data.manifest import write_part
from icve.data.tables import Malformed, Record
from icve.runtime.atomic import whole_file

MANIFEST, REJECTED = "manifest", "rejected"

_KEY = b"icve.import"
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("stage", "reason", "detail", "table")]
    + [("record_number", pa.int64())]
    + [(name, pa.string()) for name in (*REQUIRED, "record")]
)


def digest_of(settings: Any, table: OpenTable, records: Sequence[Record | Malformed]) -> str:
    """Digest of all that decides what becomes of records, but for the files."""
    text = json.dumps([settings, table.name, table.columns, [_plain(record) for record in records]], default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_block(
    output: Path,
    part: str,
    digest: str,
    root: Path,
    table: OpenTable,
    start: int,
    records: Sequence[Record | Malformed],
    outcomes: Sequence[Row | Rejected],
) -> dict[str, Any]:
    """Write a block's two parts, the one that says what the block is last.

    Args:
        output: folder of the import.
        part: name of both parts.
        digest: see `digest_of`.
        root: that the rows' paths are relative to.
        table: of the records.
        start: records of the table that come before.
        records: of the block.
        outcomes: what became of each.

    Returns:
        digest, read, kept, rejected (by reason), types (by edit type), transient (a rejection may be gone next time).
    """
    rows = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
    manifest = output / MANIFEST / f"part-{part}.parquet"
    if rows:
        write_part(rows, manifest.parent, part, root)
    else:
        manifest.unlink(missing_ok=True)
    rejected = []
    for position, (record, outcome) in enumerate(zip(records, outcomes, strict=True), start + 1):
        if isinstance(outcome, Rejected):
            given = {} if isinstance(record, Malformed) else record
            named = {ours: as_text(given.get(theirs)) for theirs, ours in table.columns.items() if ours in REQUIRED}
            place = {"table": table.name, "record_number": position, "record": as_text(_plain(record))}
            why = {"stage": "import", "reason": outcome.reason, "detail": as_text(outcome.detail)}
            rejected.append(why | place | named | {"transient": outcome.transient})
    block = {
        "digest": digest,
        "read": len(records),
        "kept": len(rows),
        "rejected": Counter(row["reason"] for row in rejected),
        "types": Counter(row["edit_type"] for row in rows),
        "transient": any(row["transient"] for row in rejected),
    }
    content = pa.Table.from_pylist(rejected, schema=_SCHEMA).replace_schema_metadata({_KEY: json.dumps(block)})
    with whole_file(output / REJECTED / f"part-{part}.parquet") as temporary:
        pq.write_table(content, temporary)
    return block


def finished_block(output: Path, part: str, digest: str) -> dict[str, Any] | None:
    """What a block's parts say, with the ``ids`` of its rows; None if it is to be done (again)."""
    name = f"part-{part}.parquet"
    try:
        metadata = pq.read_schema(output / REJECTED / name).metadata or {}
        block = json.loads(metadata[_KEY])
        if block["digest"] != digest or block["transient"]:
            return None
        ids = pq.read_table(output / MANIFEST / name, columns=["id"]).column("id").to_pylist() if block["kept"] else []
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return block | {"ids": [int(text, 16) for text in ids]}


def _plain(record: Record | Malformed) -> Any:
    return record.given if isinstance(record, Malformed) else record
