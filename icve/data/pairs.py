"""Source/target pairs of a manifest as training batches: what clips and edits have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import Dataset

from icve.data.buckets import Bucket, BucketBatchSampler, Draw, StepSizes, replacement
from icve.data.cache.cached_rows import CachedRows, RecordIndex, collate_cached
from icve.data.cache.latents import LatentCache, LatentsError
from icve.data.latent_grid import LatentGrid
from icve.data.loader import PairLoader, collate, collate_any
from icve.data.manifest import REQUIRED, Manifest, ManifestError, read_manifest, resolve_path
from icve.data.masks import load_mask
from icve.data.media.video import VideoError, read_frames, resize_crop, sample_indices, timestamps
from icve.data.selection import Pair, Selection, select
from icve.data.share import batches_done, data_share, sample_group
from icve.data.text_condition import TextCondition
from icve.data.transforms import SourceTransform, given_texts, on_latents, transformed
from icve.data.validation_batches import validation_batches
from icve.runtime.transfers import reads_pinned

log = logging.getLogger(__name__)

_ATTEMPTS = 32  # samples tried in one place before training stops: by then the data, not a file, is broken
_REPORTED = 20  # dropped rows of one manifest that are logged one by one; all are in the data module's `dropped`

# `read_frames` with path, indices, size and perhaps shape given, or a cache in front of it.
Decoder = Callable[..., np.ndarray]

# (source file, target file, pair, bucket, fps, decoder) → source and target (F, H, W, 3) uint8 in the bucket's shape,
# and the frames (F,) of the source clip, counted from its start, that they show. Raises VideoError.
Reader = Callable[[Path, Path, Pair, Bucket, float | None, Decoder], tuple[np.ndarray, np.ndarray, np.ndarray]]


def clip_indices(path: Path, start: int, frames: int | None, count: int, fps: float | None) -> np.ndarray:
    """First ``count`` frames of a clip, resampled to ``fps`` by timestamp unless that is None.

    Returns:
        (count,) int64 frame numbers of the file.

    Raises:
        VideoError: the file cannot be read, or the clip is shorter.
    """
    seconds = timestamps(path)[: None if frames is None else start + frames]
    indices = np.arange(start, len(seconds))[:count] if fps is None else sample_indices(seconds, fps, start, count)
    if len(indices) < count:
        rate = "" if fps is None else f" at {fps:g} fps"
        raise VideoError(path, f"its clip from frame {start} gives {len(indices)} frames{rate}, fewer than {count}.")
    return indices


class FrameCache:
    """`read_frames` that decodes each file once and keeps all its frames at the size asked for.

    Clips of one raw video share it: cutting them out one by one would decode from a key frame on, for every clip.
    """

    def __init__(self) -> None:
        self._files: dict[tuple, np.ndarray] = {}

    def __call__(
        self, path: Path, indices: np.ndarray, size: tuple[int, int], shape: tuple[int, int] | None = None
    ) -> np.ndarray:
        key = (path, size, shape)
        if key not in self._files:
            self._files[key] = read_frames(path, size=size, shape=shape)
        frames = self._files[key]
        if np.min(indices) < 0 or np.max(indices) >= len(frames):
            return read_frames(path, indices, size=size, shape=shape)  # says which frame is missing
        first, last = int(indices[0]), int(indices[-1])
        if np.array_equal(indices, np.arange(first, last + 1)):
            return frames[first : last + 1]  # a view: clips that overlap share their frames
        return frames[indices]


def load_pair(
    pair: Pair, root: Path, bucket: Bucket, read: Reader, fps: float | None, decode: Decoder = read_frames
) -> dict[str, Any]:
    """Decode one pair.

    Returns:
        ``source`` and ``target`` uint8 (3, F, H, W), ``instruction``, ``id``, and ``mask`` bool (1, F, H, W) if the
        pair has one.

    Raises:
        VideoError, ManifestError: a file cannot be read or leaves the root.
    """
    source_file, target_file = resolve_path(root, pair.source), resolve_path(root, pair.target)
    source_FHWC, target_FHWC, shown = read(source_file, target_file, pair, bucket, fps, decode)
    sample: dict[str, Any] = {
        "source": _channels_first(source_FHWC),
        "target": _channels_first(target_FHWC),
        "instruction": pair.instruction,
        "id": pair.id,
    }
    if pair.mask is not None:
        sample["mask"] = torch.from_numpy(_read_mask(resolve_path(root, pair.mask), shown, bucket))[None]
    return sample


class PairDataset(Dataset[dict[str, Any]]):
    """Loads the pair at a :class:`Draw`; an unreadable one is replaced by another of its bucket and reported.

    Samples hold ``source`` and ``target`` uint8 (3, F, H, W), ``instruction``, ``id``, ``dropped`` (list of
    (id, reason) of pairs found unreadable on the way), ``counted`` (whether it is the pair that was asked for, to be
    counted in a validation), and ``mask`` bool (1, F, H, W) when the manifest has masks (all
    True for a row without one: its edit may be anywhere). With ``cached`` rows they hold what
    :meth:`icve.data.cache.cached_rows.CachedRows.load` returns instead of pixels. ``transforms`` change what was read,
    see :func:`icve.data.transforms.transformed`; what is kept in memory is unchanged.
    """

    def __init__(
        self,
        selection: Selection,
        buckets: Sequence[Bucket],
        read: Reader,
        fps: float | None = None,
        seed: int = 0,
        cache_in_memory: bool = False,
        cached: CachedRows | None = None,
        transforms: Sequence[SourceTransform] = (),
    ) -> None:
        self.cached, self.transforms = cached, transforms
        self.selection, self.buckets, self.read, self.fps, self.seed = selection, list(buckets), read, fps, seed
        self.members = selection.members(len(self.buckets))
        self._decoder: Decoder = FrameCache() if cache_in_memory else read_frames
        self._samples: dict[int, dict[str, Any]] | None = {} if cache_in_memory else None
        self._unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.selection.pairs)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        # Which row replaces which must not depend on what this process has met before: known-bad rows are skipped
        # without being opened again, but they use up their attempt.
        dropped: list[tuple[str, str]] = []
        index = draw.row
        members = self.members[self.selection.pairs[index].bucket]
        for attempt in range(1, _ATTEMPTS + 1):
            if index not in self._unreadable:
                try:
                    sample = self._load(index)
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

    def _load(self, index: int) -> dict[str, Any]:
        if self._samples is not None and index in self._samples:
            return self._samples[index]
        pair, root = self.selection.pairs[index], self.selection.root
        bucket = self.buckets[pair.bucket]
        if self.cached is not None:
            sample = self.cached.load(index)
        else:
            sample = load_pair(pair, root, bucket, self.read, self.fps, self._decoder)
            if self.selection.has_masks and "mask" not in sample:
                sample["mask"] = torch.ones(1, *bucket[2:], *bucket[:2], dtype=torch.bool)
        if self._samples is not None:
            self._samples[index] = sample
        return sample


class PairsDataModule(LightningDataModule):
    """Batches of source/target pairs; :class:`UnpairedClipsDataModule` and :class:`PairedEditsDataModule` say of what.

    Batches are ``source`` and ``target`` uint8 (B, 3, F, H, W), ``instruction`` and ``id`` lists of str, and ``mask``
    bool (B, 1, F, H, W) when the manifest has a ``mask_path``. Training batches also have ``weight``, which the mean
    loss of the batch is multiplied by: those of one step may differ in size (:class:`icve.data.buckets.StepSizes`), and
    ``step_samples``, how many samples the step has; one without samples has these, ``instruction`` and ``id`` only.

    The global batch of an optimizer step is ``batch_size * accumulate_grad_batches`` samples of one bucket. It is a
    pure function of (seed, step) and the data, however it is split over processes and micro-batches: the loader of a
    resumed run begins with the batch after those that its trainer has done.

    With ``latents``, no video is opened: batches are what :func:`icve.data.cache.cached_rows.collate_cached` makes of
    a cache of the same pairs, in the same order.

    A file that cannot be read is reported once with its reason, listed in ``dropped`` and replaced by another pair of
    its bucket, chosen by (seed, n, position).

    Args:
        manifest: training manifest, see :func:`icve.data.manifest.read_manifest`.
        buckets: list of [height, width, frames]; a row goes to the one that keeps most of it
            (:func:`icve.data.buckets.choose_bucket`).
        batch_size: samples per batch, of all processes together; met on average where they cannot share a step's
            batch evenly.
        val_manifest: validation manifest; read in order, each batch from one bucket. None validates nothing.
        num_workers: processes that decode; 0 decodes in the training process.
        seed: orders the samples.
        columns: names in the manifest → names used here (``{source: source_path}``), for both manifests.
        root: folder the manifests' paths are relative to; None takes what they record, or their own folder.
        fps: resample clips to this rate by timestamp; None takes the files' own frames.
        bucket_ratios: share of steps per bucket; None gives every sample the same share.
        cache_in_memory: decode each file once and keep its frames at the bucket's size; for data that fits into
            memory. Every worker keeps its own, so it goes best with ``num_workers=0``.
        worker_timeout: seconds after which a worker that delivers nothing stops training with an error.
        latents: folder of a latent cache of both manifests, made by `icve encode`; None decodes the videos.
        tokens_per_batch: source and target tokens of the global batch of a step: every bucket has as many samples as
            give them, instead of ``batch_size * accumulate_grad_batches``.
        tokens_per_micro_batch: the most source and target tokens that one process, or a group of processes that share
            them, computes at once (one sample at least): a step of small samples then needs fewer passes than
            accumulate_grad_batches, and skips the others. None makes all passes, with as few samples each as that
            gives.
        grid: strides of the codec and patch of the transformer, with which tokens are counted.
        transforms: of training samples, in their order (:mod:`icve.data.transforms`); validation samples stay as they
            are.

    Raises:
        ValueError: the manifest cannot be used, or no row of it can, or rows are not in the cache as asked for, or a
            transform cannot be used with a cache (raised by ``setup``).
        FileNotFoundError: there is no latent cache (raised by ``setup``).
    """

    read: Reader

    def __init__(
        self,
        manifest: str,
        buckets: list[list[int]],
        batch_size: int,
        val_manifest: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        columns: dict[str, str] | None = None,
        root: str | None = None,
        fps: float | None = None,
        bucket_ratios: list[float] | None = None,
        cache_in_memory: bool = False,
        worker_timeout: int = 300,
        latents: str | None = None,
        tokens_per_batch: int | None = None,
        tokens_per_micro_batch: int | None = None,
        grid: LatentGrid = LatentGrid(),  # noqa: B008 (frozen)
        transforms: list[SourceTransform] | None = None,
    ) -> None:
        super().__init__()
        if not buckets:
            raise ValueError("Give at least one bucket [height, width, frames].")
        self.manifest, self.val_manifest, self.columns, self.root = manifest, val_manifest, columns, root
        self.buckets = [Bucket.parse(bucket) for bucket in buckets]
        self.batch_size, self.bucket_ratios, self.seed, self.fps = batch_size, bucket_ratios, seed, fps
        self.num_workers, self.worker_timeout, self.cache_in_memory = num_workers, worker_timeout, cache_in_memory
        self.latents = latents
        self.tokens_per_batch, self.tokens_per_micro_batch = tokens_per_batch, tokens_per_micro_batch
        self.grid, self.transforms = grid, transforms or []
        self.latent_cache: LatentCache | None = None
        self.train: Selection | None = None
        self.val: Selection | None = None
        self._cached: dict[str, CachedRows] = {}  # by manifest
        self._given_texts: dict[str, TextCondition] = {}
        self.dropped: dict[str, str] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests, sort their rows into buckets and log how many are used and why others are not."""
        train = self.train is None and stage in (None, "fit")
        val_manifest = self.val_manifest if self.val is None and stage in (None, "fit", "validate") else None
        index = None
        if train and self.latents is not None:
            for transform in self.transforms:
                on_latents(transform)
        if self.latents is not None and (train or val_manifest is not None):
            self.latent_cache = self.latent_cache or LatentCache(self.latents)
            index = RecordIndex(self.latent_cache.records())
        if train and self.latent_cache is not None:
            self._given_texts = self.latent_cache.texts(given_texts(self.transforms))
        if train:
            self.train = self._select(self.manifest, index)
        if val_manifest is not None:
            self.val = self._select(val_manifest, index)

    def check_encoders(self, frozen: Mapping[str, nn.Module]) -> None:
        """Raise ValueError unless these frozen parts ("codec", "text_encoder") made the latents, if there are any."""
        if self.latent_cache is not None:
            self.latent_cache.check_encoders(frozen["codec"], frozen["text_encoder"])

    def step_sizes(self, groups: int, passes: int) -> StepSizes:
        """How so many groups of processes share a step's batch in so many passes; no manifest is read for it."""
        batch = self.batch_size * passes
        return StepSizes(
            self.buckets, batch, groups, passes, self.tokens_per_batch, self.tokens_per_micro_batch, self.grid
        )

    def train_dataloader(self) -> PairLoader:
        """Endless loader that begins where the trainer is."""
        if self.train is None:
            self.setup("fit")
        assert self.train is not None  # as setup leaves it
        rank, groups = data_share(self.trainer)
        passes = getattr(self.trainer, "accumulate_grad_batches", 1)  # without a trainer, a batch is a step's
        sizes = self.step_sizes(groups, passes)
        members = self.train.members(len(self.buckets))
        sampler = BucketBatchSampler(members, sizes, self.seed, rank, batches_done(self.trainer), self.bucket_ratios)
        log.info("A step's batch: %s.", "; ".join(map(sizes.describe, sampler.drawn)))
        return self._loader(self.train, self.manifest, sampler, self.transforms)

    def val_dataloader(self) -> PairLoader | list:
        """Fixed order, see :func:`icve.data.validation_batches.validation_batches`; as many batches for every process.

        The batches also have ``counted``, a list of B bool: False for a sample that stands in for another one, or for
        none, and whose loss would count twice.
        """
        if self.val_manifest is None:
            return []
        if self.val is None:
            self.setup("validate")
        assert self.val is not None  # as setup leaves it
        members = self.val.members(len(self.buckets))
        batches = validation_batches(members, self.batch_size, *data_share(self.trainer))
        return self._loader(self.val, self.val_manifest, batches)

    def rows(self, path: str) -> Manifest:
        """Rows of one of the manifests, and the records that are none."""
        return read_manifest(path, self.root, self.columns, (*REQUIRED, "target_path"), partial=True)

    def _select(self, path: str, index: RecordIndex | None) -> Selection:
        manifest = self.rows(path)
        if index is not None:
            index.describe(manifest, self.fps)
        selection = select(manifest, self.buckets, self.fps)
        per_bucket = ", ".join(
            f"{len(members)} in {bucket}"
            for bucket, members in zip(self.buckets, selection.members(len(self.buckets)), strict=True)
        )
        log.info("%s: %d of %d rows used: %s.", path, len(selection.pairs), selection.rows, per_bucket)
        self._report(selection.dropped)
        if not selection.pairs:
            raise ValueError(
                f"No row of {path} can be used ({selection.rows} rows; the first: {selection.dropped[0][1]}); "
                "check the manifest, its root and the buckets."
            )
        if index is not None and self.latent_cache is not None:
            self._cached[path] = CachedRows(
                self.latent_cache, index, selection, self.buckets, self.fps, type(self).read, path
            )
        return selection

    def _loader(
        self,
        selection: Selection,
        manifest: str,
        batches: BucketBatchSampler | list[list[Draw]],
        transforms: Sequence[SourceTransform] = (),
    ) -> PairLoader:
        workers, cached, read = self.num_workers, self._cached.get(manifest), type(self).read
        join = collate
        if cached is not None:
            join = partial(collate_cached, empty=cached.cache.no_instruction(), texts=self._given_texts)
        return PairLoader(
            PairDataset(selection, self.buckets, read, self.fps, self.seed, self.cache_in_memory, cached, transforms),
            batches,
            collate_fn=partial(collate_any, collate=join),
            num_workers=workers,
            timeout=self.worker_timeout if workers else 0,
            persistent_workers=workers > 0,
            pin_memory=self._on_accelerator,
            report=self._report,
            # From a cache every process reads everything: it is little.
            group=sample_group(self.trainer) if cached is None else None,
        )

    @property
    def _on_accelerator(self) -> bool:
        """Whether it is trained on a device that copies from pinned memory, not only whether there is one."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and reads_pinned(device)

    def _report(self, dropped: Sequence[tuple[str, str]]) -> None:
        new = {name: reason for name, reason in dropped if name not in self.dropped}
        self.dropped.update(new)
        for name, reason in list(new.items())[:_REPORTED]:
            log.warning("Dropped %s: %s", name, reason)
        if len(new) > _REPORTED:
            log.warning("Dropped %d more.", len(new) - _REPORTED)


def _channels_first(frames_FHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2)


def _read_mask(path: Path, shown: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Edit mask (F, H, W) of the frames shown, brought to the bucket like them: half covered counts as inside."""
    try:
        mask_FHW = load_mask(path)
    except (ValueError, OSError) as error:
        raise VideoError(path, str(error)) from error
    if len(mask_FHW) <= shown.max():
        raise VideoError(path, f"it masks {len(mask_FHW)} frames, fewer than {int(shown.max()) + 1}.")
    grey_FHWC = mask_FHW[shown, ..., None].astype(np.uint8) * 255
    return resize_crop(grey_FHWC, (bucket.height, bucket.width))[..., 0] >= 128
