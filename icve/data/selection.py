"""Which rows of a manifest can be trained on, and in which bucket."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from icve.data.buckets import Bucket, choose_bucket
from icve.data.frame_choice import FrameChoice, SlowClips, is_slow, sampled_frames
from icve.data.manifest import Manifest, ManifestError, Row, resolve_path
from icve.data.media.video import VideoError, VideoInfo, probe

_PROBE_THREADS = 8


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


@dataclass
class Selection:
    """Rows of a manifest that can be trained on: ``rows`` = usable ``pairs`` + ``dropped`` (id → reason).

    Dropped are also the records of the table that are no rows.
    """

    rows: int
    root: Path
    pairs: list[Pair] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    has_masks: bool = False
    has_references: bool = False
    slow: int = 0  # rows with fewer frames than the rate wants: among the pairs, or dropped for that

    def members(self, buckets: int) -> list[list[int]]:
        """Row numbers of each bucket."""
        members: list[list[int]] = [[] for _ in range(buckets)]
        for number, pair in enumerate(self.pairs):
            members[pair.bucket].append(number)
        return members


def select(
    manifest: Manifest,
    buckets: Sequence[Bucket],
    fps: float | None = None,
    references: bool = False,
    *,
    slow_clips: SlowClips = "own_rate",
) -> Selection:
    """Sort the rows of a manifest into buckets; what is slower than ``fps`` by its own frames, or not at all.
    `references`: with the pictures in their column ``reference_path``.

    Rows whose size and length stand in the columns ``width``, ``height`` and ``source_frames`` or ``frames`` (and, with
    ``fps`` and more than one frame, the rate in ``fps``) cost nothing; files of the others are probed.
    """
    selection = Selection(
        len(manifest) + len(manifest.rejected),
        manifest.root,
        dropped=[(record.id, record.reason) for record in manifest.rejected],
        has_masks=any(row.get("mask_path") for row in manifest),
        has_references=references and any(row.get("reference_path") for row in manifest),
    )
    unknown = [row for row in manifest if not _missing(row) and not is_described(row, fps)]
    probed = dict(zip(map(id, unknown), _probe_all(unknown, manifest.root), strict=True))
    for row in manifest:
        info = probed.get(id(row))
        if missing := _missing(row):
            selection.dropped.append((row["id"], f"it has no {missing}."))
        elif isinstance(info, ValueError):
            selection.dropped.append((row["id"], str(info)))
        else:
            width, height, frames, slow = _extent(row, info, fps)
            selection.slow += slow
            bucket = choose_bucket(buckets, width, height, frames)
            if slow and slow_clips == "drop":
                selection.dropped.append((row["id"], FrameChoice(fps, slow_clips).refusal))
            elif bucket is None:
                least = min(bucket.frames for bucket in buckets)
                selection.dropped.append((row["id"], f"it has {frames} frames, the shortest bucket has {least}."))
            else:
                selection.pairs.append(_pair(row, bucket, references))
    return selection


def _missing(row: Row) -> str | None:
    names = ("source_path", "target_path", "instruction")
    return next((name for name in names if not (row.get(name) or "").strip()), None)


def is_described(row: Row, fps: float | None) -> bool:
    """Whether a row's own columns tell its bucket, so that its video need not be opened for that."""
    lengths = [row[name] for name in ("source_frames", "frames") if row.get(name)]
    rate = ("fps",) if fps and 1 not in lengths else ()  # a picture has none
    return bool(lengths) and all(row.get(name) for name in ("width", "height", *rate))


def _probe_all(rows: Sequence[Row], root: Path) -> list[VideoInfo | ValueError]:
    def attempt(row: Row) -> VideoInfo | ValueError:
        try:
            return probe(resolve_path(root, row["source_path"]))
        except (VideoError, ManifestError) as error:
            return error

    with ThreadPoolExecutor(_PROBE_THREADS) as pool:
        found = pool.map(attempt, rows)
        return list(tqdm(found, desc="Probing videos", total=len(rows), unit="video", disable=len(rows) < 100))


def _extent(row: Row, info: VideoInfo | None, fps: float | None) -> tuple[int, int, int, bool]:
    """Width, height and number of frames (at `fps`) that both clips of a row have, as far as is known unopened, and
    whether they are slow."""
    width, height, file_frames, rate = (
        (info.width, info.height, info.frames, info.fps)
        if info is not None
        else (row["width"], row["height"], row.get("frames"), row.get("fps"))
    )
    lengths = [row[name] for name in ("source_frames", "target_frames") if row.get(name)]
    if file_frames is not None:
        lengths.append(file_frames - (row.get("source_start") or 0))
    frames = max(0, min(lengths))
    if fps is None or frames < 2:  # one frame has no rate
        return width, height, frames, False
    return width, height, int(sampled_frames(frames, rate, fps)), bool(is_slow(rate, fps))


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
        reference=(row.get("reference_path") or None) if references else None,
    )
