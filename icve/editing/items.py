"""What is to be edited: one video, a folder, or a manifest, as a list of items with safe and distinct file names."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from icve.data.manifest import ManifestError, Row, parquet_parts, read_manifest, resolve_path
from icve.data.manifest_table import RejectedRow
from icve.data.media.media_paths import foreign_path
from icve.data.media.still_picture import is_picture
from icve.data.media.video_folders import broken_link, find_videos, left_out_text, named_videos
from icve.data.tables import SUFFIXES
from icve.runtime.printable import is_text
from icve.runtime.process_pools import parse_shard
from icve.runtime.storage.remote_path import RemotePath, as_path

CONDITIONS = ("mask", "reference")  # files that an item may have beside its video


class ItemError(ValueError):
    """An input that gives no items, in one sentence."""


@dataclass(frozen=True)
class Item:
    """One edit to make. ``problem`` says why it cannot be made, where that is known before it is tried."""

    id: str
    name: str  # file name without suffix: safe, and no other item's
    source: Path
    shown_source: str  # as the user named it
    instruction: str
    seed: int
    start: int = 0
    count: int | None = None  # frames from ``start`` on; None is all
    problem: str | None = None
    mask: Path | None = None  # picture or video, white in the region to change
    reference: Path | None = None  # picture to take looks from


class Items(list[Item]):
    """Items, and what else is in the folder they come from: ``left_out`` has the reasons by relative path."""

    def __init__(self, items: Iterable[Item], left_out: Mapping[str, str] | None = None) -> None:
        super().__init__(items)
        self.left_out = dict(left_out or {})


def read_items(
    source: str | os.PathLike,
    instruction: str | None = None,
    seed: int = 0,
    root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    exclude: str | os.PathLike | None = None,
    mask: str | os.PathLike | None = None,
    reference: str | os.PathLike | None = None,
) -> Items:
    """Items of an input.

    Args:
        source: a video or picture file, also behind a URL; a folder of videos (subfolders too, see
            :mod:`icve.data.media.video_folders`); or a manifest (a table that :mod:`icve.data.tables` reads, or a
            folder of Parquet parts) with the columns ``source_path`` and ``instruction``, optionally ``id``, ``seed``,
            ``source_start``, ``source_frames``, ``mask_path`` and ``reference_path``.
        instruction: for a video or a folder, and for rows of a manifest without one.
        seed: of items that bring none.
        root, columns: of a manifest, see :func:`icve.data.manifest.read_manifest`.
        exclude: folder whose videos are no input, because results are written to it.
        mask, reference: of items that bring none.

    Raises:
        ItemError: there is nothing to edit, the instruction is missing or given twice, or a file does not exist.
        ManifestError: the manifest cannot be read.
        RemoteError: a server does not say what there is.
    """
    path = as_path(source)
    if instruction is not None and not instruction.strip():
        raise ItemError("The instruction is empty: say what to change.")
    if not path.exists():
        raise ItemError(
            foreign_path(source)
            or f"The input {source} does not exist: give a video, a folder of videos or a manifest."
        )
    for name, file in (("mask", mask), ("reference", reference)):
        if file is not None and not as_path(file).is_file():
            raise ItemError(f"The {name} {file} does not exist: give a file that does.")
    left_out: dict[str, str] = {}
    if path.suffix.lower() in SUFFIXES or (path.is_dir() and parquet_parts(path)):
        items = _manifest_items(path, instruction, seed, root, columns)
    else:
        if instruction is None:
            raise ItemError(f"{path} needs an --instruction: say what to change.")
        items, left_out = _file_items(path, instruction.strip(), seed, exclude)
    masks, references = (None if file is None else as_path(file) for file in (mask, reference))
    if masks or references:
        items = [replace(i, mask=i.mask or masks, reference=i.reference or references) for i in items]
    return Items(_named(items), left_out)


def shard(items: Sequence[Item], text: str) -> list[Item]:
    """Part "i/n" (i from 1) of the items: every n-th source with all its items, so that none is decoded twice.

    Raises:
        ValueError: ``text`` is not such a part.
    """
    part, parts = parse_shard(text)
    order = {source: number for number, source in enumerate(dict.fromkeys(item.source for item in items))}
    return [item for item in items if order[item.source] % parts == part - 1]


def result_name(item: Item, suffix: str) -> str:
    """File name of an item's result, with the suffix of the format that videos are written in: a picture stays one."""
    return f"{item.name}{'.png' if is_picture(item.source) else suffix}"


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore of ``text``, at most 80: a file name on every system."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._ ")[:80]
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
    return f"_{name}" if reserved or not name else name


def _manifest_items(path, instruction, seed, root, columns) -> list[Item]:
    """An item for every record of the manifest, in its order; one that is no row has its problem."""
    required = ("source_path",) if instruction is not None else ("source_path", "instruction")
    manifest = read_manifest(path, root, columns, required, partial=True)
    rejected, rows = {record.number: record for record in manifest.rejected}, iter(manifest)
    return [
        _rejected_item(rejected[number], manifest.root, seed)
        if number in rejected
        else _row_item(next(rows), manifest.root, instruction, seed)
        for number in range(1, len(manifest) + len(rejected) + 1)
    ]


def _row_item(row: Row, root: Path, instruction: str | None, seed: int) -> Item:
    problem, shown, file = None, row.get("source_path") or "", root
    given: dict[str, Path] = {}
    words = (row.get("instruction") or instruction or "").strip()
    if not shown:
        problem = "It has no source_path."
    elif not words:
        problem = "Its instruction is empty: say what to change."
    else:
        try:
            file = resolve_path(root, shown)
            given = {name: resolve_path(root, row[f"{name}_path"]) for name in CONDITIONS if row.get(f"{name}_path")}
        except ManifestError as error:
            problem = str(error)
    own = row.get("seed")
    if own not in (None, ""):
        number = _whole_number(own)
        if number is None:
            problem = problem or f"Its seed {own!r:.80} is not a whole number of 64 bits."
        else:
            seed = number
    start, count = row.get("source_start") or 0, row.get("source_frames")
    return Item(row["id"], "", file, shown, words, seed, start, count, problem, **given)


def _rejected_item(record: RejectedRow, root: Path, seed: int) -> Item:
    shown, words = (str(record.row.get(name) or "") for name in ("source_path", "instruction"))
    return Item(record.id, "", root, shown, words, seed, problem=record.reason)


def _whole_number(value: Any) -> int | None:
    """A cell as an integer of 64 bits, or None if it is none; "3.0", as spreadsheets write it, is one."""
    if isinstance(value, bool) or not isinstance(value, int | str | float | Decimal):
        return None
    try:
        number = Decimal(value)
        return int(number) if -(2**63) <= number < 2**63 and number == number.to_integral_value() else None
    except ArithmeticError:
        return None


def _file_items(
    path: Path, instruction: str, seed: int, exclude: str | os.PathLike | None
) -> tuple[list[Item], dict[str, str]]:
    """Items of a video or of a folder's, and why the other files of the folder are none."""
    if path.is_file():
        return [Item(path.stem, "", path, str(path), instruction, seed)], {}
    if isinstance(path, RemotePath):
        found = named_videos(path.listing())
    else:
        found = find_videos(path, None if exclude is None or Path(exclude).resolve() == path.resolve() else exclude)
    if not found.videos:
        raise ItemError(f"There is no video in {path}. {left_out_text(found.left_out)}".rstrip())
    stems = Counter(PurePosixPath(name).with_suffix("").as_posix() for name in found.videos)
    items = []
    for name in found.videos:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        file, problem = path / name, None
        if (target := broken_link(file)) is not None:
            problem = f"{file} is a broken link: there is no {target}."
        items.append(Item(stem if stems[stem] == 1 else name, "", file, str(file), instruction, seed, problem=problem))
    return items, found.left_out


def _named(items: list[Item]) -> list[Item]:
    """Items with distinct ids and file names, and with a problem where no text encoder could read their instruction.

    Names depend on the whole list, never on the shard.
    """
    seen: Counter[str] = Counter()
    distinct = []
    for item in items:
        seen[item.id] += 1
        distinct.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    names = Counter(safe_name(item.id).casefold() for item in distinct)
    named = []
    for item in distinct:
        problem, name = item.problem, safe_name(item.id)
        if problem is None and not is_text(item.instruction):
            problem = "Its instruction has characters that are no text (half of a surrogate pair)."
        if name != item.id or names[name.casefold()] > 1:
            name += "-" + hashlib.blake2b(item.id.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        named.append(replace(item, name=name, problem=problem))
    return named
