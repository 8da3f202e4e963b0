"""Fills a latent cache: pairs decoded in worker processes, encoded one by one in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from icve.data.buckets import Bucket
from icve.data.cache.latents import LatentCache, Record, ShardWriter, request_of
from icve.data.cache.record_index import RecordIndex
from icve.data.edit_region import region_from_mask
from icve.data.frame_choice import FrameChoice
from icve.data.identity import FileIdentity, json_digest
from icve.data.manifest import ManifestError
from icve.data.media import stored_index
from icve.data.media.video import VideoError, probe, read_frames
from icve.data.mixture import DataSet
from icve.data.pair_reading import Reader, load_pair
from icve.data.pairs import PairsDataModule
from icve.data.selection import Pair, select
from icve.data.text_condition import TextCondition
from icve.runtime.storage.remote_path import RemoteError

log = logging.getLogger(__name__)

_REPORTED = 20  # rejected rows that are logged one by one; all are in the cache's `rejected`
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One pair to encode. ``record`` names its row and its request."""

    pair: Pair
    root: Path
    bucket: Bucket
    record: Record


@dataclass
class Work:
    """What a part of the manifests comes to: ``rows`` = rows of ``jobs``, ``reused`` and ``rejected``, and ``repeated``
    ones, which are in several manifests.
    """

    rows: int
    jobs: list[Job]
    rejected: list[Record]
    reused: int = 0
    repeated: int = 0


class Encoders:
    """The frozen codec and text encoder, two modules with a method ``encode``, on the device they run on."""

    def __init__(self, codec: Any, text_encoder: Any, device: str | torch.device) -> None:
        self.codec = codec.eval().requires_grad_(False).to(device)
        self.text_encoder = text_encoder.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.text = lru_cache(maxsize=1024)(self._text)  # instructions repeat

    @torch.no_grad()
    def video(self, pixels: Tensor) -> Tensor:
        """uint8 (3, F, H, W) to latents (C, T, h, w) float32, as training does it."""
        return self.codec.encode(pixels[None].to(self.device).float() / 127.5 - 1.0)[0].float()

    @torch.no_grad()
    def _text(self, instruction: str) -> TextCondition:
        return self.text_encoder.encode([instruction]).alone(0).to("cpu")


def find_work(data: PairsDataModule, cache: LatentCache, part: tuple[int, int]) -> Work:
    """What of the data module's manifests part i of n (every n-th row) has to encode, sorted by bucket.

    Raises:
        ManifestError: a manifest cannot be used.
    """
    index, read = RecordIndex.of(cache), type(data).read
    work = Work(0, [], [])
    seen: set[tuple] = set()
    sets = list(data.data_sets)
    if data.val_manifest and (held_out := DataSet(data.val_manifest)) not in sets:
        sets.append(held_out)
    for of in sets:
        manifest = data.rows(of).part(*part)
        selection = select(
            manifest,
            data.buckets,
            data.fps,
            index.videos,
            references=data.references,
            slow_clips=data.choice.slow_clips,
        )
        if selection.slow:
            log.warning("%s: %s", of.manifest, data.choice.describe(selection.slow))
        work.rows += selection.rows
        work.rejected += [Record(name, "", {}, reason=reason) for name, reason in selection.dropped]
        for pair in selection.pairs:
            bucket = data.buckets[pair.bucket]
            request = request_of(pair, bucket, data.fps, read)
            place = (pair.id, request, pair.source, pair.target, pair.mask, pair.reference, selection.root)
            if place in seen:
                work.repeated += 1
                continue
            seen.add(place)
            known = [record for record in index.find(pair, request) if record.reason is None]
            if any(record.difference(selection.root, pair) is None for record in known):
                work.reused += 1
            else:
                work.jobs.append(Job(pair, selection.root, bucket, Record(pair.id, request, {})))
    work.jobs.sort(key=lambda job: job.bucket)  # a shard holds one bucket
    return work


def encode_pairs(
    work: Work,
    data: PairsDataModule,
    cache: LatentCache,
    encoders: Encoders,
    writer: ShardWriter,
    workers: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Encode the jobs into the cache; what cannot be encoded is added to ``work.rejected``.

    Args:
        workers: processes that decode.
        progress: called after every job.

    Returns:
        how many pairs were encoded.

    Raises:
        ValueError: the codec does not take the bucket's shape.
    """
    for record in work.rejected:
        writer.reject(record)
    encoded = 0
    for job, loaded in zip(work.jobs, _decoded(work.jobs, data, workers), strict=True):
        reason = loaded if isinstance(loaded, str) else None
        if not isinstance(loaded, str):
            record, sample, reads = loaded
            tensors, reason = _encode(sample, encoders)
            if reason is None:
                content = [[file.digest for file in record.files.values()], reads, record.request, cache.encoders]
                writer.add(replace(record, key=json_digest(content)), job.bucket, tensors)
                encoded += 1
        if reason is not None:
            rejected = replace(job.record, reason=reason)
            writer.reject(rejected)
            work.rejected.append(rejected)
        progress()
    for record in work.rejected[:_REPORTED]:
        log.warning("Rejected %s: %s", record.id, record.reason)
    if len(work.rejected) > _REPORTED:
        log.warning("Rejected %d more.", len(work.rejected) - _REPORTED)
    return encoded


def _encode(sample: dict[str, Any], encoders: Encoders) -> tuple[dict[str, Tensor], str | None]:
    roles: tuple[str, ...] = ("source", "target", "reference")
    tensors = {role: encoders.video(sample[role]) for role in roles if role in sample}
    tensors |= encoders.text(sample["instruction"]).tensors("text")
    if "mask" in sample:
        tensors["region"] = region_from_mask(sample["mask"][None], tensors["target"].shape[1:])[0]
    for role, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return {}, f"its encoded {role} is not finite; try an encoder of higher precision."
    return tensors, None


# A decoded job: its record, its sample and what was read of its files; or why it cannot be decoded.
Loaded = tuple[Record, dict[str, Any], list] | str


def _decoded(jobs: Sequence[Job], data: PairsDataModule, workers: int) -> Iterator[Loaded]:
    dataset = _Decoding(jobs, type(data).read, data.choice)
    workers = min(workers, len(jobs))
    timeout = data.worker_timeout if workers else 0
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, timeout=timeout, collate_fn=_as_it_is))


class _Decoding(Dataset[Loaded]):
    def __init__(self, jobs: Sequence[Job], read: Reader, choice: FrameChoice) -> None:
        self.jobs, self.read, self.choice, self._indices = jobs, read, choice, stored_index.in_use()

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> Loaded:
        job = self.jobs[number]
        pair, reads = job.pair, []
        for folder, below in self._indices:  # known already unless this process was spawned
            stored_index.use(folder, below)

        def decode(path: Path, indices: np.ndarray, **options: Any) -> np.ndarray:
            reads.append([np.asarray(indices).tolist(), sorted(options.items())])
            return read_frames(path, indices, **options)

        try:
            # Read first: a file that changes meanwhile is noticed as changed later.
            paths = {"source": pair.source, "target": pair.target, "mask": pair.mask, "reference": pair.reference}
            files = {role: _identify(job.root, path) for role, path in paths.items() if path is not None}
            sample = load_pair(pair, job.root, job.bucket, self.read, self.choice, decode)
            info = probe(job.root / pair.source)
        except (VideoError, ManifestError) as error:
            return str(error)
        video = (info.width, info.height, info.frames, info.fps)
        return replace(job.record, files=files, video=video), sample, reads


def _identify(root: Path, path: str) -> FileIdentity:
    try:
        return FileIdentity.of(root, path)
    except RemoteError:
        raise
    except OSError as error:
        raise VideoError(root / path, f"it cannot be opened ({error.strerror}).") from error


def _as_it_is(loaded: T) -> T:
    return loaded
