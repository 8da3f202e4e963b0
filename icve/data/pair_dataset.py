"""The pairs of a selection as samples: what cannot be read is replaced, and reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from icve.data.buckets import Bucket, Draw, replacement
from icve.data.cache.cached_rows import CachedRows
from icve.data.cache.latents import LatentsError
from icve.data.frame_choice import FrameChoice, TemporalCrop
from icve.data.manifest import ManifestError
from icve.data.media import stored_index
from icve.data.media.video import VideoError, read_frames
from icve.data.pair_reading import Decoder, FrameCache, Reader, load_pair
from icve.data.selection import Selection
from icve.data.transforms import SourceTransform, transformed

_ATTEMPTS = 32  # samples tried in one place before training stops: by then the data, not a file, is broken


class PairDataset(Dataset[dict[str, Any]]):
    """Loads the pair at a :class:`Draw`; an unreadable one is replaced by another of its bucket and reported.

    Samples hold ``source`` and ``target`` uint8 (3, F, H, W), ``instruction``, ``id``, ``dropped`` (list of
    (id, reason) of pairs found unreadable on the way), ``counted`` (whether it is the pair that was asked for, to be
    counted in a validation), and ``mask`` bool (1, F, H, W) when the manifest has masks (all
    True for a row without one: its edit may be anywhere), ``reference`` uint8 (3, 1, H, W) and ``referenced`` when it
    has references (all 0 and False for a row without one). With ``cached`` rows they hold what
    :meth:`icve.data.cache.cached_rows.CachedRows.load` returns instead of pixels. ``transforms`` change what was read,
    see :func:`icve.data.transforms.transformed`; what is kept in memory is unchanged.
    """

    def __init__(
        self,
        selection: Selection,
        buckets: Sequence[Bucket],
        read: Reader,
        choice: FrameChoice = FrameChoice(),  # noqa: B008 (frozen)
        seed: int = 0,
        cache_in_memory: bool = False,
        cached: CachedRows | None = None,
        transforms: Sequence[SourceTransform] = (),
        temporal_crop: TemporalCrop = "start",
    ) -> None:
        self.cached, self.transforms = cached, transforms
        self.selection, self.buckets, self.read, self.choice, self.seed = selection, list(buckets), read, choice, seed
        self.temporal_crop, self._indices = temporal_crop, stored_index.in_use()
        self.members = selection.members(len(self.buckets))
        self._decoder: Decoder = FrameCache() if cache_in_memory else read_frames
        # Of a random window the frames of its files are kept, but not the sample.
        keeps = cache_in_memory and temporal_crop == "start"
        self._samples: dict[int, dict[str, Any]] | None = {} if keeps else None
        self._unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.selection.pairs)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        # Which row replaces which must not depend on what this process has met before: known-bad rows are skipped
        # without being opened again, but they use up their attempt.
        dropped: list[tuple[str, str]] = []
        index = draw.row
        members = self.members[self.selection.buckets[index]]
        for attempt in range(1, _ATTEMPTS + 1):
            if index not in self._unreadable or self.temporal_crop == "random":  # where another window may be read
                try:
                    sample = self._load(index, draw)
                except (VideoError, ManifestError, LatentsError) as error:
                    self._unreadable[index] = str(error)
                    dropped.append((self.selection.pairs[index].id, str(error)))
                else:
                    counted = draw.counted and index == draw.row
                    sample = transformed(sample, self.transforms, self.seed, draw)
                    return {**sample, "dropped": dropped, "counted": counted}
            index = replacement(members, self.seed, draw, attempt)
        raise ValueError(
            f"{_ATTEMPTS} pairs in a row cannot be read; check the manifest and its root. The first: "
            f"{self._unreadable[draw.row]}"
        )

    def _load(self, index: int, draw: Draw | None = None) -> dict[str, Any]:
        if self._samples is not None and index in self._samples:
            return self._samples[index]
        pair, root = self.selection.pairs[index], self.selection.root
        bucket = self.buckets[pair.bucket]
        if self.cached is not None:
            sample = self.cached.load(index)
        else:
            for folder, below in self._indices:  # known already unless this process was spawned
                stored_index.use(folder, below)
            choice = self.choice
            if self.temporal_crop == "random" and draw is not None:
                choice = choice.drawn(self.seed, draw)
            sample = load_pair(pair, root, bucket, self.read, choice, self._decoder)
            if self.selection.has_masks and "mask" not in sample:
                sample["mask"] = torch.ones(1, *bucket[2:], *bucket[:2], dtype=torch.bool)
            if self.selection.has_references:
                sample["referenced"] = "reference" in sample
                sample.setdefault("reference", torch.zeros(3, 1, *bucket[:2], dtype=torch.uint8))
        if self._samples is not None:
            self._samples[index] = sample
        return sample
