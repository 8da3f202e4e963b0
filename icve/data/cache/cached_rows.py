"""The rows of a manifest in a latent cache: found, checked and loaded for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from icve.data.buckets import Bucket
from icve.data.cache.latents import LatentCache, LatentsError, request_of
from icve.data.cache.record_index import RecordIndex
from icve.data.cache.requests import requests_of
from icve.data.manifest_table import batch_column
from icve.data.selection import Pair, Selection
from icve.data.text_condition import TextCondition


class CachedRows:
    """Loads the pairs of a selection from a cache.

    Args:
        cache, index: the cache and its records.
        selection: pairs to find in it.
        buckets, fps, read: how they are to be encoded.
        manifest: shown in the error.

    Raises:
        ValueError: pairs are not in the cache, or were encoded in another way. Those that `icve encode` rejected are
            dropped when they are drawn, as unreadable videos are.
    """

    def __init__(
        self,
        cache: LatentCache,
        index: RecordIndex,
        selection: Selection,
        buckets: Sequence[Bucket],
        fps: float | None,
        read: Callable,
        manifest: str,
    ) -> None:
        self.cache, self.index, self.selection = cache, index, selection
        self._asked = buckets, fps, read
        absent = self._absent()
        if absent:
            first = selection.pairs[absent[0]]
            raise ValueError(
                f"The latent cache {cache.folder} lacks {len(absent)} of the {len(selection.pairs)} pairs of "
                f"{manifest} (the first, {first.id}: {index.why_not(first, self._request(first))}); add them with: "
                f"icve encode -c CONFIG.yaml --output {cache.folder}"
            )

    def _request(self, pair: Pair) -> str:
        buckets, fps, read = self._asked
        return request_of(pair, buckets[pair.bucket], fps, read)

    def _absent(self) -> list[int]:
        """Which pairs are not in the cache as they are asked for."""
        manifest, numbers = self.selection.manifest, self.selection.numbers
        names = [batch_column(rows, "id") for _, rows in manifest.batches_at(numbers)]
        places = pc.index_in(pa.chunked_array(names, pa.string()), value_set=self.index.ids)
        requests = self.index.column("request")
        absent: list[int] = []
        for start, rows in manifest.batches_at(numbers):
            end = start + len(rows)
            asked = requests_of(rows, self.selection.buckets[start:end], *self._asked, self.selection.references)
            same = pc.fill_null(pc.equal(requests.take(places[start:end]), asked), False).to_numpy()
            # An older record may be the one that is asked for.
            pairs = ((at, self.selection.pairs[at]) for at in (start + np.flatnonzero(~same)).tolist())
            absent += [at for at, pair in pairs if not self.index.find(pair, self._request(pair))]
        return absent

    def load(self, index: int) -> dict[str, Any]:
        """Sample of a pair: ``source`` and ``target`` latents (C, T, h, w) and ``text`` (B = 1), all in the cache's
        precision, ``instruction``, ``id``, ``region`` bool (1, T, h, w) when the manifest has masks (all True for a
        row without one), and ``reference`` (C, 1, h, w) and ``referenced`` when it has references (all 0 and False).

        Raises:
            LatentsError: the row was rejected, a file of it is not what was encoded, or its shard is damaged.
        """
        pair = self.selection.pairs[index]
        reason = None
        records = self.index.find(pair, self._request(pair))
        for record in records:
            reason = record.reason or record.difference(self.selection.root, pair)
            if reason is None:
                tensors = self.cache.read(record)
                break
        else:
            rejected = records[-1].reason
            raise LatentsError(rejected or f"{reason} Encode it again: icve encode --output {self.cache.folder}")
        sample: dict[str, Any] = {"instruction": pair.instruction, "id": pair.id, **tensors}
        if self.selection.has_masks and "region" not in sample:
            sample["region"] = torch.ones(1, *sample["target"].shape[1:], dtype=torch.bool)
        if self.selection.has_references:
            sample["referenced"] = "reference" in sample
            sample.setdefault("reference", torch.zeros_like(sample["target"][:, :1]))
        return sample


def collate_cached(
    samples: Sequence[dict[str, Any]], empty: TextCondition, texts: Mapping[str, TextCondition]
) -> dict[str, Any]:
    """Samples of :meth:`CachedRows.load` → one batch.

    Args:
        empty: condition of the empty instruction.
        texts: conditions of instructions that transforms give.

    Returns:
        ``source``, ``target`` (B, C, T, h, w), ``region`` (B, 1, T, h, w) and ``reference`` (B, C, 1, h, w) if there is
        one; lists of B: ``text`` each of its own length, or None for an instruction that was not encoded,
        ``instruction``, ``id``, and ``referenced`` with a reference; ``no_text`` of the empty instruction; ``dropped``,
        the concatenation of theirs.
    """
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0]}
    for name in ("source", "target", "region", "reference"):
        if name in batch:
            batch[name] = torch.stack(batch[name])
    conditions = zip(batch["text"], batch["instruction"], strict=True)
    batch["text"] = [texts.get(words) if text is None else text for text, words in conditions]
    batch["dropped"] = [entry for dropped in batch["dropped"] for entry in dropped]
    return batch | {"no_text": empty}
