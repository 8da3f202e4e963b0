"""Parts: what became of one shard's rows in one stage, as one Parquet file that is written whole or not at all.

A part holds every outcome: rows that went on, and rejected rows with their reason. Its metadata says what it was made
from (`made_from`, a digest of the stage's parameters and of everything before it), what its rows are (`content`) and
how many there were, so that deciding what is still valid reads no rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from icve.curation.stage import Rejected, Row
from icve.data.cells import table_rows, to_table
from icve.data.identity import json_digest
from icve.runtime.atomic import whole_file
from icve.runtime.printable import as_text

_KEY = b"icve.part"
_REJECTION = ("rejected_reason", "rejected_detail", "rejected_transient")
_ROW = "rejected_row"  # of a rejected row, all it holds: its text must not make text of the others' numbers


@dataclass(frozen=True)
class PartInfo:
    """A part's metadata.

    `rows_in` = `passed` + the sum of `rejected`; `rows_out` is larger than `passed` where rows were cut into several.
    `stage` is the provenance: class, version and parameters.
    """

    made_from: str
    content: str
    rows_in: int
    passed: int
    rows_out: int
    rejected: dict[str, int]
    transient: int
    seconds: float
    stage: dict[str, Any]

    @property
    def chain(self) -> str:
        """What the next stage's part is made from."""
        return json_digest([self.made_from, self.content])


def write_part(
    file: Path,
    made_from: str,
    stage: dict[str, Any],
    kept: Sequence[Row],
    rejected: Sequence[tuple[Row, Rejected]],
    passed: int,
    seconds: float,
) -> PartInfo:
    """Write a part.

    Raises:
        ValueError: a value that no table holds.
        OSError: the file cannot be written.
    """
    reasons = Counter(rejection.reason for _, rejection in rejected)
    info = PartInfo(
        made_from=made_from,
        content=json_digest(list(kept)),
        rows_in=passed + len(rejected),
        passed=passed,
        rows_out=len(kept),
        rejected=dict(reasons.most_common()),
        transient=sum(rejection.transient for _, rejection in rejected),
        seconds=round(seconds, 3),
        stage=stage,
    )
    # Rejected rows may be rejected for what is no text in them, or say so of a name: there it is spelled out.
    table = to_table([*kept, *(as_text(dict(zip(_REJECTION, astuple(r), strict=True))) for _, r in rejected)])
    if rejected:
        rows = to_table([as_text(row) for row, _ in rejected]).to_struct_array().combine_chunks()
        table = table.append_column(_ROW, pa.concat_arrays([pa.nulls(len(kept), rows.type), rows]))
    table = table.replace_schema_metadata({_KEY: json.dumps(asdict(info)).encode()})
    with whole_file(file) as temporary:
        pq.write_table(table, temporary)
    return info


def read_info(file: Path) -> PartInfo | None:
    """A part's metadata; None if there is no part, or none that can be read."""
    try:
        metadata = pq.read_schema(file).metadata or {}
        return PartInfo(**json.loads(metadata[_KEY]))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None


def read_part(file: Path) -> tuple[list[Row], list[tuple[Row, Rejected]]]:
    """A part's kept rows and its rejected ones. Raises OSError or pyarrow.ArrowException."""
    kept, rejected = [], []
    for row in table_rows(pq.read_table(file)):
        own, reason, detail, transient = (row.pop(name, None) for name in (_ROW, *_REJECTION))
        # Columns that only other rows of the part have are no columns of this row. Earlier versions had no `_ROW`.
        row = {name: value for name, value in (own or row).items() if value is not None}
        if reason is None:
            kept.append(row)
        else:
            rejected.append((row, Rejected(reason, detail, transient)))
    return kept, rejected
