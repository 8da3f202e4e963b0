"""Which rows of a manifest can be trained on, and in which bucket."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from icve.data.buckets import Bucket, choose_buckets
from icve.data.frame_choice import FrameChoice, SlowClips, is_slow, sampled_frames
from icve.data.manifest import Manifest, ManifestError, Row, resolve_path
from icve.data.manifest_table import batch_column
from icve.data.media.video import VideoError, probe
from icve.runtime.together import gather, process_place

MOST_PROBED = 10_000  # rows of a manifest that do not state their size and length
_PROBE_THREADS = 8
_NEEDED = ("source_path", "target_path", "instruction")


@dataclass(frozen=True)
class Pair:
    """One usable row. A clip is ``frames`` frames of its file from ``start`` on, or all the rest where that is None."""

    id: str
    instruction: str
    bucket: int
    source: str
    source_start: int
    source_frames: int | None
    target: str
    target_start: int
    target_frames: int | None
    mask: str | None
    reference: str | None = None


class Videos(NamedTuple):
    """What source files show, (N,) each; 0 where it is not known (``frames`` -1)."""

    width: np.ndarray
    height: np.ndarray
    frames: np.ndarray
    fps: np.ndarray


# (ids, source paths) of rows → what was seen of their files before
Known = Callable[[pa.Array, pa.Array], Videos]


class Pairs(Sequence[Pair]):
    """The usable rows of a selection, each made when it is asked for."""

    def __init__(self, manifest: Manifest, numbers: np.ndarray, buckets: np.ndarray, references: bool) -> None:
        self._manifest, self._numbers, self._buckets, self._references = manifest, numbers, buckets, references

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Pair: ...

    @overload
    def __getitem__(self, number: slice) -> list[Pair]: ...

    def __getitem__(self, number: int | slice) -> Pair | list[Pair]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        return _pair(self._manifest[int(self._numbers[number])], int(self._buckets[number]), self._references)

    def __iter__(self) -> Iterator[Pair]:
        return map(_pair, self._manifest.rows_at(self._numbers), self._buckets.tolist(), repeat(self._references))


class Dropped(Sequence[tuple[str, str]]):
    """(id, reason) of what cannot be trained on: the manifest's rejected records, then its rows in their order."""

    def __init__(self, manifest: Manifest, numbers: np.ndarray, codes: np.ndarray, reasons: Sequence[str]) -> None:
        self._manifest, self._numbers, self._codes, self._reasons = manifest, numbers, codes, reasons

    def __len__(self) -> int:
        return len(self._manifest.rejected) + len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> tuple[str, str]: ...

    @overload
    def __getitem__(self, number: slice) -> list[tuple[str, str]]: ...

    def __getitem__(self, number: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        rejected = self._manifest.rejected
        if place < len(rejected):
            return rejected[place].id, rejected[place].reason
        place -= len(rejected)
        return self._manifest[int(self._numbers[place])]["id"], self._reasons[self._codes[place]]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for record in self._manifest.rejected:
            yield record.id, record.reason
        for row, code in zip(self._manifest.rows_at(self._numbers), self._codes.tolist(), strict=True):
            yield row["id"], self._reasons[code]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(tuple.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list has none


@dataclass(eq=False)
class Selection:
    """Rows of a manifest that can be trained on: ``rows`` = usable ``pairs`` + ``dropped`` (id, reason).

    Dropped are also the records of the table that are no rows.

    Attributes:
        manifest: the rows.
        numbers: (P,) int64, of the usable ones, ascending; ``pairs`` are in this order.
        buckets: (P,) int16, the bucket of each.
        dropped: the others.
        has_masks, has_references: whether a row names one.
        references: whether pairs have the pictures that their rows name.
        slow: rows with fewer frames than the rate wants: among the pairs, or dropped for that.
    """

    manifest: Manifest
    numbers: np.ndarray
    buckets: np.ndarray
    dropped: Dropped
    has_masks: bool = False
    has_references: bool = False
    references: bool = False
    slow: int = 0
    _members: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> int:
        return len(self.manifest) + len(self.manifest.rejected)

    @property
    def root(self) -> Path:
        return self.manifest.root

    @cached_property
    def pairs(self) -> Pairs:
        return Pairs(self.manifest, self.numbers, self.buckets, self.references)

    def members(self, buckets: int) -> list[np.ndarray]:
        """Places in ``pairs`` of each bucket, int64; the same arrays for all who ask."""
        if len(self._members) != buckets:
            self._members = [np.flatnonzero(self.buckets == bucket) for bucket in range(buckets)]
        return self._members


def select(
    manifest: Manifest,
    buckets: Sequence[Bucket],
    fps: float | None = None,
    known: Known | None = None,
    together: bool = False,
    *,
    references: bool = False,
    slow_clips: SlowClips = "own_rate",
) -> Selection:
    """Sort the rows of a manifest into buckets; what is slower than ``fps`` by its own frames, or not at all.

    Rows whose size and length stand in the columns ``width``, ``height`` and ``source_frames`` or ``frames`` (and, with
    ``fps`` and more than one frame, the rate in ``fps``) cost nothing; files of the others are probed.

    Args:
        manifest: the rows.
        buckets: to choose from.
        fps: rate that clips are brought to; None leaves them theirs.
        known: what was seen of files before, which is asked first.
        together: all processes call this at the same place, with the same manifest: each probes a part of the files.
        references: pairs have the pictures in their column ``reference_path``.
        slow_clips: see :class:`icve.data.frame_choice.FrameChoice`.

    Raises:
        ManifestError: so many files would have to be probed that every start of a run would take long.
    """
    outcome = np.zeros(len(manifest), dtype=np.int32)  # bucket, or -1 - reason
    reasons = _Reasons(buckets, FrameChoice(fps, slow_clips))
    unknown: list[np.ndarray] = []
    for start, batch in zip(manifest.starts.tolist(), manifest.batches, strict=False):
        lacking = {name: _blank(batch_column(batch, name)) for name in _NEEDED}
        complete = ~np.logical_or.reduce(list(lacking.values()))
        videos = _stated(batch)
        described = _are_described(batch, videos, fps)
        if known is not None and (ask := complete & ~described).any():
            rows = pa.array(ask)
            found = known(*(batch_column(batch, name).filter(rows) for name in ("id", "source_path")))
            there = found.width > 0
            for values, new in zip(videos, found, strict=True):
                values[np.flatnonzero(ask)[there]] = new[there]
            described = _are_described(batch, videos, fps)
        frames, slow = _lengths(batch, videos, fps)
        chosen = choose_buckets(buckets, videos.width, videos.height, frames)
        chosen = reasons.outcome(chosen, frames, slow & complete, described)
        for name in reversed(_NEEDED):  # the first that is missing is said
            if lacking[name].any():
                chosen[lacking[name]] = reasons.code(f"it has no {name}.")
        outcome[start : start + len(batch)] = chosen
        unknown.append(start + np.flatnonzero(complete & ~described))
    probed = np.concatenate(unknown) if unknown else np.empty(0, np.int64)
    if len(probed) > MOST_PROBED:
        raise ManifestError(
            f"{len(probed)} rows of {manifest.path} do not say width, height, frames{' and fps' if fps else ''}, and "
            f"every start would look into their files (at most {MOST_PROBED} are allowed): write a manifest that says "
            f"it, and train on that one: icve inspect-data {shlex.quote(str(manifest.path))} --complete FOLDER"
        )
    rows = [manifest[int(number)] for number in probed]
    for number, row, seen in zip(probed, rows, _probe_all(rows, manifest.root, together), strict=True):
        if isinstance(seen, str):
            outcome[number] = reasons.code(seen)
            continue
        one = pa.RecordBatch.from_pylist([row], schema=_LENGTHS)
        videos = Videos(*map(np.atleast_1d, seen))
        frames, slow = _lengths(one, videos, fps)
        outcome[number] = reasons.outcome(choose_buckets(buckets, videos.width, videos.height, frames), frames, slow)[0]
    usable, left = np.flatnonzero(outcome >= 0), np.flatnonzero(outcome < 0)
    has_masks, refer = (
        any(batch_column(batch, name).null_count < len(batch) for batch in manifest.batches)
        for name in ("mask_path", "reference_path")
    )
    dropped = Dropped(manifest, left, -1 - outcome[left], reasons.texts)
    own = usable, outcome[usable].astype(np.int16), dropped
    return Selection(manifest, *own, has_masks, references and refer, references, reasons.slow)


_LENGTHS = pa.schema([(name, pa.int64()) for name in ("source_start", "source_frames", "target_frames")])


class _Reasons:
    """Why rows are dropped: sentences, and numbers below 0 that stand for them."""

    def __init__(self, buckets: Sequence[Bucket], choice: FrameChoice) -> None:
        self._least, self._choice = min(bucket.frames for bucket in buckets), choice
        self._codes: dict[str, int] = {}
        self.slow = 0  # rows so far

    @property
    def texts(self) -> list[str]:
        return list(self._codes)

    def code(self, text: str) -> int:
        return -1 - self._codes.setdefault(text, len(self._codes))

    def outcome(
        self, chosen: np.ndarray, frames: np.ndarray, slow: np.ndarray, counts: np.ndarray | bool = True
    ) -> np.ndarray:
        """The chosen buckets, and why there is none where it counts."""
        outcome = chosen.astype(np.int32)
        self.slow += int((slow & counts).sum())
        short = (chosen < 0) & counts
        for length in np.unique(frames[short]).tolist():
            text = f"it has {length} frames, the shortest bucket has {self._least}."
            outcome[short & (frames == length)] = self.code(text)
        if self._choice.slow_clips == "drop" and (slow & counts).any():
            outcome[slow & counts] = self.code(self._choice.refusal)
        return outcome


def _blank(texts: pa.Array) -> np.ndarray:
    """Which texts hold nothing, or white space alone."""
    # What is neither a separator nor a control character is not white space, whatever Python takes for that.
    sure = pc.fill_null(pc.match_substring_regex(texts, r"[^\s\pZ\pC]"), False).to_numpy(zero_copy_only=False)
    blank = ~sure
    for place in np.flatnonzero(blank):
        blank[place] = not (texts[int(place)].as_py() or "").strip()
    return blank


def _filled(batch: pa.RecordBatch, name: str, nothing: int = 0) -> np.ndarray:
    """A column of numbers, which may be written to, with something in place of null."""
    place = batch.schema.get_field_index(name)
    if place < 0:
        return np.full(len(batch), nothing, dtype=np.float64 if name == "fps" else np.int64)
    return pc.fill_null(batch.column(place), nothing).to_numpy(zero_copy_only=False).copy()


def _stated(batch: pa.RecordBatch) -> Videos:
    """What the rows' own columns say of their source files."""
    sizes = _filled(batch, "width"), _filled(batch, "height")
    return Videos(*sizes, _filled(batch, "frames", -1), _filled(batch, "fps"))


def _are_described(batch: pa.RecordBatch, videos: Videos, fps: float | None) -> np.ndarray:
    """Which rows' buckets are told by this, so that their videos need not be opened for that."""
    clip = _filled(batch, "source_frames")
    described = (videos.width > 0) & (videos.height > 0) & ((videos.frames > 0) | (clip > 0))
    pictures = (videos.frames == 1) | (clip == 1)  # have no rate
    return described & ((videos.fps > 0) | pictures) if fps else described


def _lengths(batch: pa.RecordBatch, videos: Videos, fps: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Number of frames (at `fps`) that both clips of each row have, as far as is known unopened, (N,) int64; and which
    are slow, (N,) bool."""
    most = np.iinfo(np.int64).max
    frames = np.where(videos.frames >= 0, videos.frames - _filled(batch, "source_start"), most)
    for name in ("source_frames", "target_frames"):
        clip = _filled(batch, name)
        frames = np.minimum(frames, np.where(clip > 0, clip, most))
    frames = np.maximum(frames, 0)
    slow = np.zeros(len(frames), dtype=bool)
    if fps is not None:
        # A picture has no rate, and of others it or the length may not be known yet.
        clips = (frames > 1) & (frames < most) & (videos.fps > 0)
        slow[clips] = is_slow(videos.fps[clips], fps)
        frames[clips] = sampled_frames(frames[clips], videos.fps[clips], fps)
    return frames, slow


def _probe_all(rows: Sequence[Row], root: Path, together: bool) -> list[tuple[int, int, int, float] | str]:
    """Width, height, frames and rate of the rows' source files, or why they cannot be read."""

    def attempt(row: Row) -> tuple[int, int, int, float] | str:
        try:
            info = probe(resolve_path(root, row["source_path"]))
        except (VideoError, ManifestError) as error:
            return str(error)
        return info.width, info.height, info.frames, info.fps

    rank, ranks = process_place() if together else (0, 1)
    own = rows[rank::ranks]
    with ThreadPoolExecutor(_PROBE_THREADS) as pool:
        found = list(
            tqdm(pool.map(attempt, own), desc="Probing videos", total=len(own), unit="video", disable=len(own) < 100)
        )
    if ranks == 1 or not rows:
        return found
    parts = gather(found)
    return [parts[number % ranks][number // ranks] for number in range(len(rows))]


def _pair(row: Row, bucket: int, references: bool) -> Pair:
    return Pair(
        id=row["id"],
        instruction=row["instruction"],
        bucket=bucket,
        source=row["source_path"],
        source_start=row.get("source_start") or 0,
        source_frames=row.get("source_frames"),
        target=row["target_path"],
        target_start=row.get("target_start") or 0,
        target_frames=row.get("target_frames"),
        mask=row.get("mask_path"),
        reference=row.get("reference_path") if references else None,
    )
