"""What a curation run starts from, a folder of videos or a manifest, and how it is cut into shards.

The cut is remembered: inputs that appear later go into new shards, so that finished ones stay finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from icve.curation.stage import Rejected, Row
from icve.data.identity import file_digest, json_digest
from icve.data.manifest import ManifestError, RejectedRow, parquet_parts, read_manifest, resolve_path
from icve.data.media.media_paths import foreign_path
from icve.data.media.video_folders import VIDEO_SUFFIXES, broken_link, find_videos, is_video, left_out_text
from icve.runtime.atomic import whole_file
from icve.runtime.locks import locked
from icve.runtime.printable import as_text, is_text
from icve.runtime.storage.files import FileState, file_state, listed_files
from icve.runtime.storage.remote_path import RemoteError, RemotePath, as_path


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run.

    Attributes:
        root: what their paths are relative to.
        names: of all inputs, in a fixed order: paths of videos, or keys of a manifest's rows.
        rows: a manifest's rows by key; None for videos.
        left_out: the other files of a folder, with the reason why each is no input.
        copies: names of videos that are an earlier one once more, with its name: `icve.curation.copies.mark_copies`.
        rejected: keys of a manifest's records that are no rows, with the reason.
        listed: states of remote videos, as their server listed them.
    """

    root: Path
    names: list[str]
    rows: dict[str, Row] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    listed: dict[str, FileState] = field(default_factory=dict)

    def state_of(self, name: str) -> FileState:
        """Size and time of change of a video. Raises OSError."""
        return self.listed[name] if name in self.listed else file_state(self.root / name)

    def state(self, names: list[str]) -> str:
        """Digest that changes when one of these inputs may have: without reading the videos."""
        if self.rows is not None:
            return json_digest([self.rows[name] for name in names])
        states = []
        for name in names:
            with contextlib.suppress(OSError):
                stat = self.state_of(name)
                copied = [self.copies[name]] if name in self.copies else []
                states.append([name, *stat, *copied])
        return json_digest(states)

    def read(self, names: list[str]) -> list[Row | tuple[Row, Rejected]]:
        """First rows of a shard: `key`, `video` and `digest` of its content; or a manifest's columns with `key`."""
        if self.rows is not None:
            whys = map(self.rejected.get, names)
            return [(self.rows[k], why) if why else _readable(self.rows[k]) for k, why in zip(names, whys, strict=True)]
        return [self._first_row(name) for name in names]

    def _first_row(self, name: str) -> Row | tuple[Row, Rejected]:
        row = {"key": hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()}
        row["video"] = name.encode("utf-8", "replace").decode()
        if (target := broken_link(self.root / name)) is not None:
            return row, Rejected("broken link", f"there is no {as_text(target)}", transient=True)
        if name in self.copies:
            return row, Rejected("duplicate", f"the same file as {as_text(self.copies[name])}")
        if not is_text(name):
            return row, Rejected("unreadable name", f"{as_text(name)} is no UTF-8, which tables need: rename the file")
        try:
            return {**row, "digest": file_digest(resolve_path(self.root, name))}
        except ManifestError as error:
            return row, Rejected("leaves the input folder", str(error))
        except RemoteError:
            raise
        except OSError as error:
            return row, Rejected("unreadable file", str(error), transient=True)


def find_inputs(path: str | Path, root: str | Path | None = None) -> Inputs:
    """The videos of a folder and all its subfolders, one video, or the rows of a manifest.

    Args:
        path: folder, video file, or manifest (.jsonl, .json, .csv, .tsv, .parquet, a folder of Parquet parts); or a
            URL, behind which videos are told by their suffix.
        root: folder that a manifest's paths are relative to, if not the recorded one.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: there is no video in it, or the manifest is malformed.
    """
    path = as_path(path)
    if isinstance(path, RemotePath) and (remote := _remote_videos(path)) is not None:
        return remote
    if not path.exists():
        raise FileNotFoundError(foreign_path(path) or f"There is no {path}: give a folder of videos or a manifest.")
    local = not isinstance(path, RemotePath)
    if local and path.is_file() and is_video(path):
        return Inputs(path.parent.absolute(), [path.name])
    if local and path.is_dir():
        found = find_videos(path)
        if found.videos:
            return Inputs(path.absolute(), found.videos, left_out=found.left_out)
        if not parquet_parts(path):
            raise ValueError(f"There is no video in {path}. {left_out_text(found.left_out)}".rstrip())
    manifest = read_manifest(path, root=root, required=(), partial=True)
    rows: dict[str, Row] = {}
    rejected: dict[str, Rejected] = {}
    given = [(row, None) for row in manifest] + [(_texts(none), none.reason) for none in manifest.rejected]
    for row, reason in given:
        # Stages name files by the key, so an id that could lead elsewhere is replaced.
        own = row.pop("id")
        name = own
        if not re.fullmatch(r"[\w-]{1,100}", own):
            name = hashlib.blake2b(own.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        key, copies = name, 1
        while key in rows:  # the same edit twice: two rows
            copies += 1
            key = f"{name}-copy{copies}"
        rows[key] = {"key": key, **{name: value for name, value in row.items() if value is not None}}
        if reason is not None:
            rejected[key] = Rejected("malformed row", reason)
    return Inputs(manifest.root, list(rows), rows, rejected=rejected)


def _remote_videos(path: RemotePath) -> Inputs | None:
    """The videos of a remote folder, or a remote video; None where there are none, and a manifest is meant."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Inputs(path.parent, [path.name], listed={path.name: file_state(path)})
    try:
        states = listed_files(path)
    except FileNotFoundError:
        return None
    left_out = {
        name: "hidden file" if any(part.startswith(".") for part in name.split("/")) else "no suffix of a video"
        for name in states
        if "/." in f"/{name}" or Path(name).suffix.lower() not in VIDEO_SUFFIXES
    }
    listed = {name: state for name, state in states.items() if name not in left_out}
    if listed:
        return Inputs(path, list(listed), left_out=left_out, listed=listed)
    if any(name.lower().endswith(".parquet") for name in left_out):
        return None
    raise ValueError(f"There is no video in {path}. {left_out_text(left_out)}".rstrip())


def assign_shards(file: Path, inputs: Inputs, limit: int | None, size: int) -> dict[str, list[str]]:
    """The shards to work on: names of inputs by shard, as remembered in `file` and continued there for new inputs.

    With a limit, these are the shards that hold the first `limit` inputs.
    """
    wanted = inputs.names[:limit]
    with locked(file.with_suffix(".lock")):
        known: dict[str, list[str]] = {}
        if file.is_file():
            for shard, name in zip(*pq.read_table(file).to_pydict().values(), strict=True):
                known.setdefault(shard, []).append(os.fsdecode(name))
        assigned = {name: shard for shard, names in known.items() for name in names}
        new = [name for name in wanted if name not in assigned]
        for start in range(0, len(new), size):
            known[f"{len(known):06d}"] = new[start : start + size]
        if new:
            # As bytes: not every file's name is text.
            pairs = [(shard, os.fsencode(name)) for shard, names in known.items() for name in names]
            with whole_file(file) as temporary:
                pq.write_table(pa.table({"shard": [s for s, _ in pairs], "input": [n for _, n in pairs]}), temporary)
    chosen, present = set(wanted), set(inputs.names)
    shards = {shard: names for shard, names in known.items() if chosen.intersection(names)}
    return {shard: [name for name in names if name in present] for shard, names in shards.items()}


def _texts(record: RejectedRow) -> Row:
    """What of a record can be shown whatever else it holds."""
    return {name: as_text(cell) for name, cell in record.row.items() if isinstance(cell, str)} | {"id": record.id}


def _readable(row: Row) -> Row | tuple[Row, Rejected]:
    """A manifest's row, rejected where Parquet could not hold it."""
    text = as_text(row)
    return row if text == row else (text, Rejected("unreadable text", "characters that are no text, not even UTF-16"))
