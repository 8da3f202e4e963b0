"""Rows of a manifest as training takes them: bucket, frames by number, rate and crop of both clips.

The data module selects the rows, and its own reader says which frames it wants of which file and at which size: it is
called with a decoder that notes what it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from icve.data.buckets import Bucket
from icve.data.frame_choice import is_slow
from icve.data.manifest import ManifestError, resolve_path
from icve.data.masks import PICTURES
from icve.data.media import stored_index
from icve.data.media.video import VideoError, cover_size, probe, read_frames, timestamps
from icve.data.mixture import DataSet
from icve.data.pair_reading import clip_mask
from icve.data.pairs import PairsDataModule
from icve.data.reference_picture import read_reference
from icve.data.selection import Pair, Selection, select


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip as it is read.

    Attributes:
        path: its file.
        indices: (F,) frames of the file.
        seconds: (F,) when they are shown.
        fps: of the file.
        shape: (height, width) of the file's picture.
        scaled: (height, width) that it is brought to before the cut; `stretched` when proportions change by that.
        size: (height, width) of the cut in the middle.
        slow: it has fewer frames than the rate wants, and is taken at its own.
    """

    path: Path
    indices: np.ndarray
    seconds: np.ndarray
    fps: float
    shape: tuple[int, int]
    scaled: tuple[int, int]
    stretched: bool
    size: tuple[int, int]
    slow: bool = False

    @property
    def rate(self) -> float:
        """Frames per second of the clip as the model sees it, by the file's timestamps; 0 for one frame."""
        length = float(self.seconds[-1] - self.seconds[0])
        return (len(self.indices) - 1) / length if length > 0 else 0.0

    @property
    def cut_off(self) -> float:
        """Share of the picture that lies outside of the cut."""
        return 1 - self.size[0] * self.size[1] / (self.scaled[0] * self.scaled[1])


@dataclass(frozen=True, eq=False)
class Seen:
    """A row that can be trained on."""

    pair: Pair
    bucket: Bucket
    source: Clip
    target: Clip

    @property
    def clips(self) -> dict[str, Clip]:
        return {"source": self.source, "target": self.target}


SeenPair = tuple[Seen, dict[str, np.ndarray]]  # with its clips' pixels by role, uint8 (F, H, W, 3)


@dataclass
class Inspection:
    """Rows of a data set: of its ``selection`` so many were ``looked_at``, and are in ``rows`` or among ``dropped``.

    ``dropped`` are (id, reason), those that the selection left out too.
    """

    module: PairsDataModule
    of: DataSet
    selection: Selection
    looked_at: int
    rows: list[Seen]
    dropped: list[tuple[str, str]]

    def read(self, row: Seen) -> SeenPair | None:
        """A row with its pixels; one that does not decode is moved to the dropped ones."""
        pixels = _read(self.module, self.selection, row.pair, read_frames)
        if isinstance(pixels, str):
            self.rows.remove(row)
            self.dropped.append((row.pair.id, pixels))
            return None
        return row, {"source": pixels[0], "target": pixels[1]}


def inspect_rows(
    module: PairsDataModule, decode: bool = False, limit: int | None = None, of: DataSet | None = None
) -> Inspection:
    """Look at the rows of a data set that a data module trains on.

    Args:
        module: the data module that would train.
        decode: decode all frames, not only the index of each file.
        limit: rows looked at, evenly over the manifest; None is all.
        of: the data set; None is the first, or only one.

    Raises:
        ValueError: the manifest cannot be read.
    """
    rows, slow_clips = module.rows(of or module.data_sets[0]), module.choice.slow_clips
    selection = select(rows, module.buckets, module.fps, references=True, slow_clips=slow_clips)
    pairs: Sequence[Pair] = selection.pairs
    if limit is not None and limit < len(pairs):
        pairs = [pairs[int(k)] for k in np.linspace(0, len(pairs) - 1, limit)]
    inspection = Inspection(module, of or module.data_sets[0], selection, len(pairs), [], list(selection.dropped))
    for pair in tqdm(pairs, desc="Looking at rows", unit="row", disable=len(pairs) < 100):
        noted: list[Clip] = []

        def note(path: Path, indices: np.ndarray, noted: list[Clip] = noted, **shapes: Any) -> np.ndarray:
            clip = _clip(path, indices, **shapes)
            noted.append(replace(clip, slow=bool(clip.rate and is_slow(clip.rate, module.fps))))
            if decode:
                return read_frames(path, indices, **shapes)
            return np.broadcast_to(np.uint8(0), (len(indices), *shapes["size"], 3))  # takes no memory

        read = _read(module, selection, pair, note)
        problem = read if isinstance(read, str) else _problem_beside(module, selection, pair, read[2], decode)
        if problem is not None:
            inspection.dropped.append((pair.id, problem))
        else:
            inspection.rows.append(Seen(pair, module.buckets[pair.bucket], *noted))
    return inspection


def keep_index(manifest: str, inspection: Inspection) -> Path:
    """Write what was found out of the videos beside their manifest, and return the file.

    Raises:
        ValueError: it cannot be written there.
    """
    store = stored_index.use(stored_index.index_folder(manifest), inspection.selection.root)
    try:
        store.write()
    except OSError as error:
        raise ValueError(f"{store.file} cannot be written ({error}): make its folder writable.") from error
    if not store.kept:
        raise ValueError(f"{store.file} cannot be written: make its folder writable.")
    return store.file


def choose(inspection: Inspection, count: int) -> list[Seen]:
    """Rows to show: of every bucket in turn, in the manifest's order."""
    queues: dict[Bucket, list[Seen]] = {}
    for row in inspection.rows:
        queues.setdefault(row.bucket, []).append(row)
    turns = [queue[k] for k in range(count) for queue in queues.values() if k < len(queue)]
    return turns[:count]


def _read(
    module: PairsDataModule, selection: Selection, pair: Pair, decode: Callable[..., np.ndarray]
) -> tuple[np.ndarray, ...] | str:
    """What the module's reader returns, or why it cannot read the pair."""
    root, bucket = selection.root, module.buckets[pair.bucket]
    try:
        files = resolve_path(root, pair.source), resolve_path(root, pair.target)
        return module.read(*files, pair, bucket, module.choice, decode)
    except (VideoError, ManifestError) as error:
        return str(error)


def _problem_beside(
    module: PairsDataModule, selection: Selection, pair: Pair, shown: np.ndarray, decode: bool
) -> str | None:
    """Why training cannot read the pair's mask, or its reference picture if it is to; None if it can."""
    root, bucket = selection.root, module.buckets[pair.bucket]
    try:
        if pair.mask is not None:
            path = resolve_path(root, pair.mask)
            if decode or path.suffix.lower() in (".npz", *PICTURES):
                clip_mask(path, shown, bucket)
            else:
                probe(path)
        if pair.reference is not None and module.references:
            read_reference(resolve_path(root, pair.reference), (bucket.height, bucket.width))
    except (VideoError, ManifestError) as error:
        return str(error)
    return None


def _clip(path: Path, indices: np.ndarray, size: tuple[int, int], shape: tuple[int, int] | None = None) -> Clip:
    """What `read_frames` makes of these arguments. Raises VideoError for a file that is not there or not whole."""
    info, seconds = probe(path), timestamps(path)
    indices = np.asarray(indices)
    if indices.max() >= len(seconds):
        raise VideoError(path, f"it has {len(seconds)} frames, so there is no frame {int(indices.max())}.")
    own = (info.height, info.width)
    return Clip(
        path, indices, seconds[indices], info.fps, own, cover_size(shape or own, size), shape not in (None, own), size
    )
