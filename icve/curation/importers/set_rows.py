"""A record of a set as a row of the manifest, with its files found and looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from icve.curation.importers.named_files import PairFiles
from icve.curation.importers.open_tables import OpenTable
from icve.curation.importers.sets import OPTIONAL_FILES, REQUIRED, PairSet
from icve.curation.stage import Rejected, Row
from icve.data.cells import cell_text
from icve.data.edit_types import edit_type
from icve.data.manifest import resolve_path
from icve.data.media.video import VideoError, probe
from icve.data.rows import content_id, instruction_problem
from icve.data.tables import Malformed, Record
from icve.runtime.storage.remote_path import RemoteError

# What the import finds out itself, so that no column of a set is mapped to it.
_CLIPS = ("source_start", "source_frames", "target_start", "target_frames", "frames", "width", "height", "fps")
MEASURED = frozenset(("id", *_CLIPS, "dataset"))


def row_maker(
    kind: str, layout: PairSet, files: PairFiles, table: OpenTable, probed: bool
) -> Callable[[Record | Malformed], Row | Rejected]:
    """A function that makes a table's record a row of the manifest, or says why it is none; threads may share it.

    Args:
        kind: the set's short name.
        layout: of the set.
        files: finds its files.
        table: that the records are of.
        probed: open both videos; their common length and the source's size and rate become columns.
    """

    def make(record: Record | Malformed) -> Row | Rejected:
        if isinstance(record, Malformed):
            return Rejected("malformed record", record.why)
        values = {ours: record.get(theirs) for theirs, ours in table.columns.items()}
        row: Row = {}
        for name, value in values.items():
            value = value.strip() if isinstance(value, str) else value
            if value in (None, ""):
                if name in REQUIRED:
                    return Rejected(f"no {name}")
            elif name == "instruction" and (problem := instruction_problem(value)):
                return Rejected("malformed record", f"{name} {problem}")
            elif name in REQUIRED and not isinstance(value, str):
                return Rejected("malformed record", f"{name} is no text but {value!r:.80}")
            elif name in OPTIONAL_FILES and not files.look:
                continue  # whether the set has it is not known
            elif name.endswith("_path"):
                found = files.find(name, str(value), table.path)
                if not isinstance(found, Rejected):
                    row[name] = found
                elif name not in OPTIONAL_FILES or not found.transient:
                    return found
            else:
                row[name] = as_text(value)
        if row["source_path"] == row["target_path"]:
            return Rejected("source is target", row["source_path"])
        named = row.pop("edit_type", None)
        task = named or layout.task(str(values["target_path"]).strip(), PurePosixPath(table.name))
        row = {
            "id": content_id({name: row[name] for name in REQUIRED}),
            **row,
            "edit_type": edit_type(task, row["instruction"]),
            "edit_subtype": row.get("edit_subtype") or task or None,
            "dataset": kind,
        }
        facts = _probe(files.root, row) if probed else {}
        if isinstance(facts, Rejected):
            return facts
        return row | facts | _others(record, table.columns)

    return make


def _probe(root: Path, row: Row) -> Row | Rejected:
    infos = []
    for name in ("source_path", "target_path"):
        try:
            infos.append(probe(resolve_path(root, row[name])))
        except RemoteError:
            raise
        except VideoError as error:
            return Rejected("unreadable video", f"{name}: {row[name]}: {error.reason}")
        except Exception as error:  # one strange file must not end the import of a million
            return Rejected("error", f"{name}: {row[name]}: {type(error).__name__}: {error}")
    source, target = infos
    frames = min(source.frames, target.frames)
    size = {"width": source.width, "height": source.height, "fps": source.fps}
    return {"source_frames": frames, "target_frames": frames} | size


def _others(record: Record, columns: Mapping[str, str]) -> Row:
    """The columns that the manifest has no name for."""
    others: Row = {}
    taken = {*MEASURED, *REQUIRED, "edit_type", "edit_subtype", *columns.values()}
    for name, value in record.items():
        if name not in columns and (text := as_text(value)) is not None:
            others[_free_name(str(name), taken)] = text
    return others


def _free_name(name: str, taken: set[str]) -> str:
    # What ends like this names files to every reader of a manifest.
    name = re.sub(r"_(paths?)$", r"_\1_as_given", name)
    return f"original_{name}" if name in taken else name


def as_text(value: Any) -> str | None:
    """A value as Parquet takes it in every row alike: text that UTF-8 can say, JSON for what is no text, or None."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return cell_text(value).encode("utf-8", "replace").decode()
