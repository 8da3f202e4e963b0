"""What is to be edited: one video, a folder, or a manifest, as a list of items with safe and distinct file names."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from icve.data.manifest import ManifestError, read_manifest, resolve_path
from icve.data.media_paths import foreign_path
from icve.data.video_folders import broken_link, find_videos, left_out_text
from icve.jobs import parse_shard
from icve.printable import is_text

MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".parquet"})


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
) -> Items:
    """Items of an input.

    Args:
        source: a video file; a folder of videos (subfolders too, see :mod:`icve.data.video_folders`); or a manifest
            (JSONL, CSV, Parquet file or folder of Parquet parts) with the columns ``source_path`` and ``instruction``,
            optionally ``id``, ``seed``, ``source_start`` and ``source_frames``.
        instruction: for a video or a folder, and for rows of a manifest without one.
        seed: of items that bring none.
        root, columns: of a manifest, see :func:`icve.data.manifest.read_manifest`.
        exclude: folder whose videos are no input, because results are written to it.

    Raises:
        ItemError: there is nothing to edit, or the instruction is missing or given twice.
        ManifestError: the manifest cannot be read.
    """
    path = Path(source)
    if instruction is not None and not instruction.strip():
        raise ItemError("The instruction is empty: say what to change.")
    if not path.exists():
        raise ItemError(
            foreign_path(source)
            or f"The input {source} does not exist: give a video, a folder of videos or a manifest."
        )
    left_out: dict[str, str] = {}
    parts = path.is_dir() and any(path.glob("*.parquet"))
    if path.suffix.lower() in MANIFEST_SUFFIXES or parts:
        items = _manifest_items(path, instruction, seed, root, columns)
    else:
        if instruction is None:
            raise ItemError(f"{path} needs an --instruction: say what to change.")
        items, left_out = _file_items(path, instruction.strip(), seed, exclude)
    return Items(map(_checked, _named(items)), left_out)


def shard(items: Sequence[Item], text: str) -> list[Item]:
    """Part "i/n" (i from 1) of the items: every n-th source with all its items, so that none is decoded twice.

    Raises:
        ValueError: ``text`` is not such a part.
    """
    part, parts = parse_shard(text)
    order = {source: number for number, source in enumerate(dict.fromkeys(item.source for item in items))}
    return [item for item in items if order[item.source] % parts == part - 1]


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore of ``text``, at most 80: a file name on every system."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._ ")[:80]
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
    return f"_{name}" if reserved or not name else name


def _manifest_items(path, instruction, seed, root, columns) -> list[Item]:
    required = ("source_path",) if instruction is not None else ("source_path", "instruction")
    manifest = read_manifest(path, root, columns, required)
    if not manifest:
        raise ItemError(f"The manifest {path} has no rows.")
    items = []
    for row in manifest:
        problem, file = None, Path(manifest.root, row.get("source_path") or "")
        words = str(row.get("instruction") or instruction or "").strip()
        if not row.get("source_path"):
            problem = "It has no source_path."
        elif not words:
            problem = "Its instruction is empty: say what to change."
        else:
            try:
                file = resolve_path(manifest.root, row["source_path"])
            except ManifestError as error:
                problem = str(error)
        number = row.get("seed")
        try:
            number = seed if number in (None, "") else int(number)
        except (TypeError, ValueError):
            number, problem = seed, f"Its seed {row['seed']!r} is not a whole number."
        start, count = row.get("source_start") or 0, row.get("source_frames")
        shown = row.get("source_path") or ""
        items.append(Item(row["id"], "", file, shown, words, number, start, count, problem))
    return items


def _file_items(
    path: Path, instruction: str, seed: int, exclude: str | os.PathLike | None
) -> tuple[list[Item], dict[str, str]]:
    """Items of a video or of a folder's, and why the other files of the folder are none."""
    if path.is_file():
        return [Item(path.stem, "", path, str(path), instruction, seed)], {}
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


def _checked(item: Item) -> Item:
    """The item, with a problem where its instruction is nothing that a text encoder could read."""
    if item.problem is None and not is_text(item.instruction):
        return replace(item, problem="Its instruction has characters that are no text (half of a surrogate pair).")
    return item


def _named(items: list[Item]) -> list[Item]:
    """Items with distinct ids and file names. Names depend on the whole list, never on the shard."""
    seen: Counter[str] = Counter()
    distinct = []
    for item in items:
        seen[item.id] += 1
        distinct.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    taken = Counter(safe_name(item.id).casefold() for item in distinct)
    named = []
    for item in distinct:
        name = safe_name(item.id)
        if name != item.id or taken[name.casefold()] > 1:
            name += "-" + hashlib.blake2b(item.id.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        named.append(replace(item, name=name))
    return named
