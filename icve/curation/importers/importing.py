"""Bring a public set of paired edits into a manifest: read as it comes, check its files, explain what is left out.

The work is done in blocks of records; a rerun redoes only blocks that are missing, whose records or settings changed,
or that missed files.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from icve.curation.importers.archives import unpack
from icve.curation.importers.blocks import MANIFEST, REJECTED, digest_of, finished_block, write_block
from icve.curation.importers.named_files import PairFiles
from icve.curation.importers.open_tables import OpenTable, blocks, find_tables, open_table
from icve.curation.importers.set_rows import MEASURED, row_maker
from icve.curation.importers.sets import REQUIRED, SETS, PairSet
from icve.curation.stage import Rejected, Row
from icve.data.manifest import ManifestError
from icve.data.tables import Malformed
from icve.runtime.atomic import write_text
from icve.runtime.process_pools import counting_bar
from icve.runtime.storage.remote_path import RemotePath, as_path, refuse_url

CHECKS = ("none", "exists", "probe")

_VERSION = 1  # raise it when the same records give other rows
_CLAIM = "import.json"


@dataclass
class ImportReport:
    """What an import read and wrote: ``read`` = ``kept`` + the sum of ``rejected``.

    Attributes:
        manifest: folder of Parquet parts with the kept rows, which ``read_manifest`` takes.
        rejections: folder of Parquet parts with the others: stage, reason, detail, table, record number and record.
        rejected: number of records by reason.
        types: number of kept rows by edit type.
        problems: archives that could not be read.
    """

    manifest: Path
    rejections: Path
    read: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.read} records = {self.kept} rows + {sum(self.rejected.values())} rejected"]
        lines += [f"  {kind:<12}{count:>10}" for kind, count in self.types.most_common()]
        lines += [f"  rejected: {reason:<24}{count:>10}" for reason, count in self.rejected.most_common()]
        return "\n".join([*lines, *self.problems])


def import_set(
    kind: str,
    source: str | Path,
    output: str | Path,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    *,
    check: str = "probe",
    root: str | Path | None = None,
    tables: Sequence[str] | None = None,
    folders: Mapping[str, str] | None = None,
    extract: bool = False,
    workers: int = 8,
) -> ImportReport:
    """Import a set of paired edits; interrupted or repeated, it does what is missing.

    Writes ``output/manifest/*.parquet`` (paths relative to the root, which is recorded) and
    ``output/rejected/*.parquet``. Videos stay where they are. Columns of the manifest: ``id, source_path, target_path,
    instruction, edit_type, edit_subtype`` (the set's own name), ``dataset``, and with ``check="probe"``
    ``source_frames, target_frames`` (as many as both have), ``width, height, fps`` (of the source). The set's other
    columns are carried along as text, with ``original_`` before names that mean something else here.

    Args:
        kind: a name in ``SETS``; "csv" is any table with a column mapping.
        source: the set's folder, or one table; or the URL of a folder of tar shards.
        output: folder for the results; it takes one import only.
        columns: names in the tables → names in the manifest, over the set's own mapping.
        limit: records to read; None is all.
        check: "probe" opens every video, "exists" looks whether it is there, "none" trusts the table.
        root: folder that all videos lie in, if not the set's folder.
        tables: patterns of tables below the set's folder, instead of the set's own.
        folders: columns (``source_path`` ...) → folders below the root that their paths are relative to.
        extract: unpack files that are missing from the tar archives found below the root.
        workers: threads that look at files.

    Raises:
        FileNotFoundError: the set's folder does not exist.
        ManifestError: there is no table, one is damaged or lacks a column, or the output holds another import.
        ValueError: an argument is out of range.
        OSError: a file cannot be written.
    """
    if kind not in SETS:
        raise ValueError(f"There is no set {kind!r}: known are {', '.join(SETS)}.")
    if check not in CHECKS or workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"check must be one of {', '.join(CHECKS)}, workers and limit at least 1.")
    refuse_url("--output", output)
    source, output, columns, folders = as_path(source), Path(output), columns or {}, folders or {}
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}: give the folder that the set was downloaded to.")
    base = source if source.is_dir() else source.parent
    root = as_path(root) if root is not None else base
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}; the videos' root must be one.")
    layout = SETS[kind]
    mapped = list(columns.values())
    if wrong := [name for name in mapped if name in MEASURED or mapped.count(name) > 1]:
        raise ValueError(f"columns cannot map to {wrong[0]}: it is found out here, or mapped to twice.")
    known = {*REQUIRED, *layout.more.values(), *columns.values()}
    unknown = set(folders) - {name for name in known if name.endswith("_path")}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} in folders is no column with paths of {layout.title}.")
    chosen = find_tables(layout, source, output, tables)
    found = [table for path in chosen if (table := open_table(path, base, layout, columns)) is not None]
    if not found:
        raise ManifestError(f"The tables of {source} hold no records.")
    files = PairFiles(root, layout.folders, folders, layout.variants, look=check != "none")
    _claim(output, {"kind": kind, "root": _told(root, output)})

    report = ImportReport(output / MANIFEST, output / REJECTED)
    if extract:
        wanted = _missing_files(found, layout, files, limit)
        with counting_bar("Unpacking", Console(stderr=True)) as progress:
            task = progress.add_task("", total=len({number for number, _ in wanted.values()}))
            report.problems = unpack(root, wanted, lambda: progress.advance(task))
    settings = [_VERSION, kind, check, sorted(folders.items())]
    written: set[str] = set()
    ids: set[int] = set()
    console = Console(stderr=True)
    with counting_bar(f"Importing {layout.title}", console) as progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("", total=limit)
        for table, start, records in blocks(found, layout, limit):
            part = f"{table.slug}-{start:08d}"
            digest = digest_of(settings, table, records)
            block = finished_block(output, part, digest)
            if block is None:
                make = row_maker(kind, layout, files, table, probed=check == "probe")
                outcomes = _without_repeats(pool.map(make, records), ids)
                block = write_block(output, part, digest, root, table, start, records, outcomes)
            else:
                ids.update(block["ids"])
            written.add(f"part-{part}.parquet")
            report.read += block["read"]
            report.kept += block["kept"]
            report.rejected.update(block["rejected"])
            report.types.update(block["types"])
            progress.advance(task, block["read"])
    for folder in (report.manifest, report.rejections):
        for file in folder.glob("part-*.parquet"):
            if file.name not in written:  # of tables or records that are no longer there
                file.unlink()
    return report


def _missing_files(
    tables: Sequence[OpenTable], layout: PairSet, files: PairFiles, limit: int | None
) -> dict[str, tuple[int, str]]:
    """Files to unpack: paths that archives may know them by → (number of the file, place to unpack it to)."""
    wanted: dict[str, tuple[int, str]] = {}
    finder = PairFiles(files.root, files.folders, files.given, files.variants)
    number = 0
    for table, _, records in blocks(tables, layout, limit):
        for record in records:
            for theirs, ours in table.columns.items():
                text = None if isinstance(record, Malformed) else record.get(theirs)
                if not ours.endswith("_path") or not isinstance(text, str) or not text.strip():
                    continue
                found = finder.find(ours, text.strip(), table.path)
                if isinstance(found, Rejected) and found.transient:
                    number += 1
                    for name, place in finder.wanted(ours, text.strip(), table.path):
                        wanted.setdefault(name, (number, place))
    return wanted


def _without_repeats(outcomes: Iterator[Row | Rejected], ids: set[int]) -> list[Row | Rejected]:
    """The outcomes; a row that was there before is rejected. ``ids`` of rows seen are added to."""
    checked: list[Row | Rejected] = []
    for outcome in outcomes:
        if not isinstance(outcome, Rejected):
            number = int(outcome["id"], 16)
            if number in ids:
                outcome = Rejected("duplicate", f"id {outcome['id']}: the same files and instruction came before")
            else:
                ids.add(number)
        checked.append(outcome)
    return checked


def _told(root: Path, output: Path) -> str:
    return str(root) if isinstance(root, RemotePath) else Path(os.path.relpath(root, output)).as_posix()


def _claim(output: Path, claim: dict[str, str]) -> None:
    """An output folder holds one import: its parts record one root, and parts of others would be cleared away."""
    file = output / _CLAIM
    if file.is_file():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        if held != claim:
            raise ManifestError(f"{output} holds another import (see {file}): choose another folder.")
    elif (output / MANIFEST).exists():
        raise ManifestError(f"{output} already holds a manifest that no import wrote: choose another folder.")
    write_text(file, json.dumps(claim, indent=1, ensure_ascii=False) + "\n")
