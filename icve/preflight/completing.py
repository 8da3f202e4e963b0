"""Manifests whose rows state their size, length and rate, made from those whose rows do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from icve.data.identity import json_digest
from icve.data.manifest import ManifestError, Row, manifest_files, read_manifest, resolve_path, write_part
from icve.data.media.video import VideoError, probe
from icve.runtime.atomic import write_text
from icve.runtime.process_pools import run_jobs

_PART = 1000  # rows of a file: what an interruption costs of each process
_OF = ".manifest"  # says whose rows a folder has
_STATED = ("width", "height", "fps")


class _Job(NamedTuple):
    rows: list[Row]
    folder: Path
    part: int
    root: Path


def complete_manifest(
    path: Path, output: Path, root: str | None = None, columns: Mapping[str, str] | None = None, workers: int = 1
) -> tuple[list[tuple[str, str]], int]:
    """Write a manifest with the width, height, frames and fps of every row's source file.

    Parts that an interrupted call has written are kept.

    Args:
        path, root, columns: of the manifest, see :func:`icve.data.manifest.read_manifest`.
        output: folder that is to hold the new one, as Parquet parts.
        workers: processes that look into files.

    Returns:
        (id, reason) of rows whose file cannot be read, which stay as they are, and of records that are no rows, which
        are left out; how many rows were written.

    Raises:
        ManifestError: the manifest cannot be used, or the folder has something else in it.
    """
    manifest = read_manifest(path, root, columns, ("source_path",), partial=True)
    stats = [(file.name, stat.st_size, stat.st_mtime_ns) for file in manifest_files(path) for stat in [file.stat()]]
    own = json_digest([stats, os.path.abspath(path), str(manifest.root), sorted((columns or {}).items())])
    mark = output / _OF
    if output.exists() and any(output.iterdir()) and not (mark.is_file() and mark.read_text(encoding="utf-8") == own):
        raise ManifestError(f"{output} holds something else than rows of {path} as it is: name another folder.")
    write_text(mark, own)
    starts = range(0, len(manifest), _PART)
    jobs = (_Job(manifest[start : start + _PART], output, n, manifest.root) for n, start in enumerate(starts))
    problems = [(record.id, record.reason) for record in manifest.rejected]
    for of_part in run_jobs(_complete_part, list(jobs), workers, "Looking into files"):
        problems += of_part
    return problems, len(manifest)


def _complete_part(job: _Job) -> list[tuple[str, str]]:
    if (job.folder / f"part-{job.part:05d}.parquet").exists():
        return []
    rows, problems = [], []
    for row in job.rows:
        try:
            rows.append(row if _is_described(row) else row | _seen(job.root, row.get("source_path") or ""))
        except (VideoError, ManifestError) as error:
            rows.append(row)
            problems.append((row["id"], str(error)))
    write_part(rows, job.folder, job.part, job.root)
    return problems


def _is_described(row: Row) -> bool:
    return all(row.get(name) for name in _STATED) and bool(row.get("source_frames") or row.get("frames"))


def _seen(root: Path, path: str) -> Row:
    info = probe(resolve_path(root, path))
    return {"width": info.width, "height": info.height, "frames": info.frames, "fps": info.fps}
