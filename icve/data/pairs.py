"""Source/target pairs of a manifest as training batches: what clips and edits have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import Dataset

from icve.data.buckets import Bucket, BucketBatchSampler, Draw, StepSampler, StepSizes
from icve.data.cache.cached_rows import CachedRows, collate_cached
from icve.data.cache.latents import LatentCache
from icve.data.cache.record_index import RecordIndex
from icve.data.frame_choice import FrameChoice, SlowClips, TemporalCrop
from icve.data.latent_grid import LatentGrid
from icve.data.loader import PairLoader, collate, collate_any
from icve.data.manifest import REQUIRED, Manifest
from icve.data.manifest_index import mapped_manifest
from icve.data.media import stored_index
from icve.data.mixture import DataSet, MixedPairs, as_data_sets, continued_sampler
from icve.data.mixture_sampler import MixtureSampler
from icve.data.pair_dataset import PairDataset
from icve.data.pair_reading import Reader
from icve.data.selection import Selection, select
from icve.data.share import batches_done, data_share, sample_group
from icve.data.text_condition import TextCondition
from icve.data.transforms import SourceTransform, given_texts, on_latents
from icve.data.validation_batches import validation_batches
from icve.runtime.transfers import reads_pinned

log = logging.getLogger(__name__)

_REPORTED = 20  # dropped rows of one manifest that are logged one by one; all are in the data module's `dropped`


class PairsDataModule(LightningDataModule):
    """Batches of source/target pairs; :class:`UnpairedClipsDataModule` and :class:`PairedEditsDataModule` say of what.

    Batches are ``source`` and ``target`` uint8 (B, 3, F, H, W), ``instruction`` and ``id`` lists of str, ``mask`` bool
    (B, 1, F, H, W), True in the region to change, when the manifest has a ``mask_path``, and with ``references``
    ``reference`` uint8 (B, 3, 1, H, W) and ``referenced`` when it has a ``reference_path``. Training batches also have
    ``weight``, which the mean loss of the batch is multiplied by: those of one step may differ in size
    (:class:`icve.data.buckets.StepSizes`), and ``step_samples``, how many samples the step has; one without samples has
    these, ``instruction`` and ``id`` only. Those of a mixture also have the lists ``data_set``, names, and
    ``loss_weight``.

    The global batch of an optimizer step is ``batch_size * accumulate_grad_batches`` samples of one bucket. It is a
    pure function of (seed, step) and the data, however it is split over processes and micro-batches: the loader of a
    resumed run begins with the batch after those that its trainer has done.

    With ``latents``, no video is opened: batches are what :func:`icve.data.cache.cached_rows.collate_cached` makes of
    a cache of the same pairs, in the same order.

    A file that cannot be read is reported once with its reason, listed in ``dropped`` and replaced by another pair of
    its bucket, chosen by (seed, n, position).

    Args:
        manifest: training manifest, see :func:`icve.data.manifest.read_manifest`; or give a mixture.
        buckets: list of [height, width, frames]; a row goes to the one that keeps most of it
            (:func:`icve.data.buckets.choose_bucket`).
        batch_size: samples per batch, of all processes together; met on average where they cannot share a step's
            batch evenly.
        val_manifest: validation manifest; read in order, each batch from one bucket. None validates nothing.
        num_workers: processes that decode; 0 decodes in the training process.
        seed: orders the samples.
        columns: names in the manifest → names used here (``{source: source_path}``), for both manifests.
        root: folder the manifests' paths are relative to; None takes what they record, or their own folder.
        fps: resample clips to this rate by timestamp; None takes the files' own frames. No frame is shown twice.
        bucket_ratios: share of steps per bucket; None gives every sample the same share.
        cache_in_memory: decode each file once and keep its frames at the bucket's size; for data that fits into
            memory. Every worker keeps its own, so it goes best with ``num_workers=0``.
        worker_timeout: seconds after which a worker that delivers nothing stops training with an error.
        latents: folder of a latent cache of both manifests, made by `icve encode`; None decodes the videos.
        tokens_per_batch: source and target tokens of the global batch of a step, with ``references`` a picture's a
            sample too: every bucket has as many samples as give them, instead of ``batch_size *
            accumulate_grad_batches``.
        tokens_per_micro_batch: the most such tokens that one process, or a group of processes that share
            them, computes at once (one sample at least): a step of small samples then needs fewer passes than
            accumulate_grad_batches, and skips the others. None makes all passes, with as few samples each as that
            gives.
        grid: strides of the codec and patch of the transformer, with which tokens are counted.
        transforms: of training samples, in their order (:mod:`icve.data.transforms`); validation samples stay as they
            are.
        mixture: data sets to train on in place of `manifest`, and their shares
            (:class:`icve.data.mixture_sampler.MixtureSampler` says how these are kept).
        references: give the model the pictures of the column ``reference_path``, for edits that take looks from one.
        slow_clips: what to do with clips that have fewer frames than ``fps`` asks for: "own_rate" takes them frame by
            frame, as `icve edit` takes every video; "drop" leaves them out.
        temporal_crop: which frames of longer clips are trained on: "start" takes the first ones, "random" a window
            drawn for every sample, one for both sides of a paired edit. Validation takes the first ones.

    Raises:
        ValueError: not exactly one of manifest and mixture is given; or, raised by ``setup``, the manifest cannot be
            used, or no row of it can, or rows are not in the cache as asked for, or a transform cannot be used with a
            cache.
        FileNotFoundError: there is no latent cache (raised by ``setup``).
    """

    read: Reader

    def __init__(
        self,
        manifest: str | None = None,
        buckets: list[list[int]] | None = None,
        batch_size: int = 0,
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
        mixture: list[DataSet] | None = None,
        references: bool = False,
        slow_clips: SlowClips = "own_rate",
        temporal_crop: TemporalCrop = "start",
    ) -> None:
        super().__init__()
        if temporal_crop not in ("start", "random"):
            raise ValueError(f"temporal_crop must be start or random, not {temporal_crop}.")
        if not buckets:
            raise ValueError("Give at least one bucket [height, width, frames].")
        if batch_size < 1:
            raise ValueError(f"Give batch_size, samples of all processes together, at least 1, not {batch_size}.")
        if (manifest is None) == (mixture is None):
            both = "not both" if mixture is not None else "for neither is set"
            raise ValueError(f"Give the training data as either manifest or mixture, {both}.")
        self.mixture = None if mixture is None else as_data_sets(mixture)
        self.manifest, self.val_manifest, self.columns, self.root = manifest, val_manifest, columns, root
        self.buckets = [Bucket.parse(bucket) for bucket in buckets]
        self.batch_size, self.bucket_ratios, self.seed, self.fps = batch_size, bucket_ratios, seed, fps
        self.choice, self.temporal_crop = FrameChoice(fps, slow_clips), temporal_crop
        self.num_workers, self.worker_timeout, self.cache_in_memory = num_workers, worker_timeout, cache_in_memory
        self.latents = latents
        self.tokens_per_batch, self.tokens_per_micro_batch = tokens_per_batch, tokens_per_micro_batch
        self.grid, self.transforms, self.references = grid, transforms or [], references
        self.latent_cache: LatentCache | None = None
        self.train: Selection | None = None
        self.mixed: list[Selection] = []  # in place of `train`, of every data set of a mixture
        self._sampler: StepSampler | None = None
        self._resumed: dict[str, Any] | None = None  # of the mixture, from a checkpoint
        self.val: Selection | None = None
        self._cached: dict[str, CachedRows] = {}  # by manifest
        self._given_texts: dict[str, TextCondition] = {}
        self._unreadable: dict[str, str] = {}  # pairs found so when they were drawn

    @property
    def dropped(self) -> dict[str, str]:
        """Reasons by the ids of rows that are not trained on: they cannot be, or were found unreadable."""
        chosen = [("", of) for of in (self.train, self.val) if of is not None]
        chosen += [(f"{entry.name}/", of) for entry, of in zip(self.mixture or (), self.mixed, strict=False)]
        found = {prefix + name: reason for prefix, of in chosen for name, reason in of.dropped}
        return found | self._unreadable

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests, sort their rows into buckets and log how many are used and why others are not."""
        train = self.train is None and not self.mixed and stage in (None, "fit")
        val_manifest = self.val_manifest if self.val is None and stage in (None, "fit", "validate") else None
        index = None
        if train and self.latents is not None:
            self.check_cacheable()
            for transform in self.transforms:
                on_latents(transform)
        if self.latents is not None and (train or val_manifest is not None):
            self.latent_cache = self.latent_cache or LatentCache(self.latents)
            index = RecordIndex.of(self.latent_cache)
        if train and self.latent_cache is not None:
            self._given_texts = self.latent_cache.texts(given_texts(self.transforms))
        if train and self.mixture is None:
            self.train = self._select(self.data_sets[0], str(self.manifest), index)
        elif train:
            self.mixed = [self._select(entry, entry.name, index) for entry in self.data_sets]
            # The samples of a batch have the same keys: what one data set has, all are filled up with.
            for flag in [name for name in vars(self.mixed[0]) if name.startswith("has_")]:
                has = any(getattr(selection, flag) for selection in self.mixed)
                for selection in self.mixed:
                    setattr(selection, flag, has)
        if train and self.references and not any(of.has_references for of in (self.train, *self.mixed) if of):
            named = ", ".join(of.manifest for of in self.data_sets)
            raise ValueError(
                f"No row of {named} has a reference_path: add some, or leave data.init_args.references out."
            )
        if val_manifest is not None:
            self.val = self._select(DataSet(val_manifest), val_manifest, index)

    @property
    def data_sets(self) -> list[DataSet]:
        """What is trained on: the mixture, or the one manifest as a data set."""
        return [DataSet(str(self.manifest))] if self.mixture is None else self.mixture

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of a mixture; nothing without one."""
        if not isinstance(self._sampler, MixtureSampler):
            return {}
        return {"mixture": self._sampler.state(batches_done(self.trainer) // self._sampler.sizes.micro_steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint's mixture was; called before the loader is made."""
        self._resumed = state_dict.get("mixture")

    def check_cacheable(self) -> None:
        """Raise ValueError where a latent cache cannot hold what is trained on."""
        if self.temporal_crop == "random":
            raise ValueError(
                "A latent cache holds one window of every clip, and temporal_crop: random wants others: set "
                "data.init_args.temporal_crop to start, or train from the videos, without data.init_args.latents."
            )

    def check_encoders(self, frozen: Mapping[str, nn.Module]) -> None:
        """Raise ValueError unless these frozen parts ("codec", "text_encoder") made the latents, if there are any."""
        if self.latent_cache is not None:
            self.latent_cache.check_encoders(frozen["codec"], frozen["text_encoder"])

    def step_sizes(self, groups: int, passes: int) -> StepSizes:
        """How so many groups of processes share a step's batch in so many passes; no manifest is read for it."""
        batch = self.batch_size * passes
        return StepSizes(
            self.buckets,
            batch,
            groups,
            passes,
            self.tokens_per_batch,
            self.tokens_per_micro_batch,
            self.grid,
            self.references,
        )

    def train_dataloader(self) -> PairLoader:
        """Endless loader that begins where the trainer is."""
        if self.train is None and not self.mixed:
            self.setup("fit")
        rank, groups = data_share(self.trainer)
        passes = getattr(self.trainer, "accumulate_grad_batches", 1)  # without a trainer, a batch is a step's
        sizes, done = self.step_sizes(groups, passes), batches_done(self.trainer)
        if self.train is not None:
            members = self.train.members(len(self.buckets))
            self._sampler = BucketBatchSampler(members, sizes, self.seed, rank, done, self.bucket_ratios)
            dataset: Dataset = self._pairs(self.train, str(self.manifest), self.transforms, self.temporal_crop)
        else:
            own = (sizes, self.seed, rank, done, self.bucket_ratios)
            self._sampler = continued_sampler(self._resumed, self.data_sets, self.mixed, *own)
            log.info("The mixture: %s.", self._sampler.describe())
            pairs = [
                self._pairs(*one, self.transforms, self.temporal_crop)
                for one in zip(self.mixed, self._sampler.members, strict=True)
            ]
            dataset = MixedPairs(self.data_sets, pairs)
        log.info("A step's batch: %s.", "; ".join(map(sizes.describe, self._sampler.drawn)))
        return self._loader(dataset, self._sampler)

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
        return self._loader(self._pairs(self.val, self.val_manifest), batches)

    def rows(self, of: str | DataSet) -> Manifest:
        """Rows of a manifest or data set as they are trained on, with the columns that this project knows, and the
        records that are none. What is found out of its videos from then on is kept beside it
        (:mod:`icve.data.media.stored_index`)."""
        of = of if isinstance(of, DataSet) else DataSet(of)
        root, columns = of.root or self.root, self.columns if of.columns is None else of.columns
        required = (*REQUIRED, "target_path", *(["edit_type"] if of.edit_types else []))
        manifest = mapped_manifest(of.manifest, root, columns, required)
        stored_index.use(stored_index.index_folder(of.manifest), manifest.root)
        return of.of(manifest)

    def _select(self, of: DataSet, name: str, index: RecordIndex | None) -> Selection:
        """Rows of a data set by bucket; it is named by its manifest, or in a mixture by its name."""
        manifest, path = self.rows(of), of.manifest
        known, options = None if index is None else index.videos, {"slow_clips": self.choice.slow_clips}
        selection = select(manifest, self.buckets, self.fps, known, True, references=self.references, **options)
        per_bucket = ", ".join(
            f"{len(members)} in {bucket}"
            for bucket, members in zip(self.buckets, selection.members(len(self.buckets)), strict=True)
        )
        log.info("%s: %d of %d rows used: %s.", name, len(selection.pairs), selection.rows, per_bucket)
        if selection.slow:
            log.warning("%s: %s", name, self.choice.describe(selection.slow))
        _log_dropped(selection.dropped, "" if name == path else f"{name}/")
        if not selection.pairs:
            raise ValueError(
                f"No row of {path} can be used ({selection.rows} rows; the first: {selection.dropped[0][1]}); "
                "check the manifest, its root and the buckets."
            )
        if index is not None and self.latent_cache is not None:
            self._cached[name] = CachedRows(
                self.latent_cache, index, selection, self.buckets, self.fps, type(self).read, path
            )
        return selection

    def _pairs(
        self,
        selection: Selection,
        name: str,
        transforms: Sequence[SourceTransform] = (),
        temporal_crop: TemporalCrop = "start",
    ) -> PairDataset:
        return PairDataset(
            selection,
            self.buckets,
            type(self).read,
            self.choice,
            self.seed,
            self.cache_in_memory,
            self._cached.get(name),
            transforms,
            temporal_crop,
        )

    def _loader(self, dataset: Dataset, batches: StepSampler | list[list[Draw]]) -> PairLoader:
        workers, join = self.num_workers, collate
        if self.latent_cache is not None:
            empty = self.latent_cache.no_instruction()
            join = partial(collate_cached, empty=empty, texts=self._given_texts)
        return PairLoader(
            dataset,
            batches,
            collate_fn=partial(collate_any, collate=join),
            num_workers=workers,
            timeout=self.worker_timeout if workers else 0,
            persistent_workers=workers > 0,
            pin_memory=self._on_accelerator,
            report=self._report,
            # From a cache every process reads everything: it is little.
            group=sample_group(self.trainer) if self.latent_cache is None else None,
        )

    @property
    def _on_accelerator(self) -> bool:
        """Whether it is trained on a device that copies from pinned memory, not only whether there is one."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and reads_pinned(device)

    def _report(self, dropped: Sequence[tuple[str, str]]) -> None:
        new = {name: reason for name, reason in dropped if name not in self._unreadable}
        self._unreadable.update(new)
        _log_dropped(list(new.items()))


def _log_dropped(dropped: Sequence[tuple[str, str]], prefix: str = "") -> None:
    for name, reason in dropped[:_REPORTED]:
        log.warning("Dropped %s%s: %s", prefix, name, reason)
    if len(dropped) > _REPORTED:
        log.warning("Dropped %d more.", len(dropped) - _REPORTED)
