"""The rows of a manifest in a latent cache: found, checked and loaded for training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from icve.data.buckets import Bucket
from icve.data.cache.latents import LatentCache, LatentsError, Record, request_of
from icve.data.selection import Pair, Selection, Videos
from icve.data.text_condition import TextCondition


class RecordIndex:
    """Records of a cache by the id of their row, newest first."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_id: dict[str, list[Record]] = {}
        for record in records:
            self._by_id.setdefault(record.id, []).append(record)
        for of_row in self._by_id.values():
            of_row.sort(key=lambda record: -record.encoded)

    def find(self, pair: Pair, request: str) -> list[Record]:
        """Records of the pair as asked for, by all but its files; the newest first, rejections last."""
        found = [record for record in self._by_id.get(pair.id, ()) if record.request == request]
        return sorted(found, key=lambda record: record.reason is not None)

    def why_not(self, pair: Pair, request: str) -> str:
        """Why :meth:`find` finds nothing, in words."""
        if pair.id not in self._by_id:
            return "it was not encoded"
        there, here = json.loads(self._by_id[pair.id][0].request or "{}"), json.loads(request)
        name = next((name for name in here if there.get(name) != here[name]), None)
        return f"it was encoded with {name} {there.get(name)}, asked for is {here[name]}" if name else "it was rejected"

    def videos(self, ids: pa.Array, sources: pa.Array) -> Videos:
        """What was seen of the source files of rows when they were encoded, see :func:`icve.data.selection.select`."""
        found = []
        for name, source in zip(ids.to_pylist(), sources.to_pylist(), strict=True):
            seen = [r for r in self._by_id.get(name, ()) if r.video is not None and r.files["source"].path == source]
            found.append(seen[0].video if seen else (0, 0, -1, 0.0))
        return Videos(*map(np.array, zip(*found, strict=True)))


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
        self.cache, self.selection = cache, selection
        self.records: list[list[Record]] = []
        absent: list[str] = []
        for pair in selection.pairs:
            request = request_of(pair, buckets[pair.bucket], fps, read)
            self.records.append(index.find(pair, request))
            if not self.records[-1]:
                absent.append(f"{pair.id}: {index.why_not(pair, request)}" if not absent else "")
        if absent:
            raise ValueError(
                f"The latent cache {cache.folder} lacks {len(absent)} of the {len(selection.pairs)} pairs of "
                f"{manifest} (the first, {absent[0]}); add them with: "
                f"icve encode -c CONFIG.yaml --output {cache.folder}"
            )

    def load(self, index: int) -> dict[str, Any]:
        """Sample of a pair: ``source`` and ``target`` latents (C, T, h, w) and ``text`` (B = 1), all in the cache's
        precision, ``instruction``, ``id``, and ``region`` bool (1, T, h, w) when the manifest has masks
        (all True for a row without one).

        Raises:
            LatentsError: the row was rejected, a file of it is not what was encoded, or its shard is damaged.
        """
        pair = self.selection.pairs[index]
        reason = None
        for record in self.records[index]:
            reason = record.reason or record.difference(self.selection.root, pair)
            if reason is None:
                tensors = self.cache.read(record)
                break
        else:
            rejected = self.records[index][-1].reason
            raise LatentsError(rejected or f"{reason} Encode it again: icve encode --output {self.cache.folder}")
        sample: dict[str, Any] = {"instruction": pair.instruction, "id": pair.id, **tensors}
        if self.selection.has_masks and "region" not in sample:
            sample["region"] = torch.ones(1, *sample["target"].shape[1:], dtype=torch.bool)
        return sample


def collate_cached(
    samples: Sequence[dict[str, Any]], empty: TextCondition, texts: Mapping[str, TextCondition]
) -> dict[str, Any]:
    """Samples of :meth:`CachedRows.load` → one batch.

    Args:
        empty: condition of the empty instruction.
        texts: conditions of instructions that transforms give.

    Returns:
        ``source``, ``target`` (B, C, T, h, w), ``region`` (B, 1, T, h, w) if there is one; lists of B: ``text`` each of
        its own length, or None for an instruction that was not encoded, ``instruction``, ``id``; ``no_text``
        of the empty instruction; ``dropped``, the concatenation of theirs.
    """
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0]}
    for name in ("source", "target", "region"):
        if name in batch:
            batch[name] = torch.stack(batch[name])
    conditions = zip(batch["text"], batch["instruction"], strict=True)
    batch["text"] = [texts.get(words) if text is None else text for text, words in conditions]
    batch["dropped"] = [entry for dropped in batch["dropped"] for entry in dropped]
    return batch | {"no_text": empty}
