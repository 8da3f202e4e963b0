"""FLOPs of encoding training samples, from the configurations of codec and text encoder; no weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from icve.data.buckets import Bucket
from icve.models.families import arguments_of
from icve.models.family import located
from icve.training.distributed.shared_encoding import owners


@dataclass(frozen=True)
class Encoding:
    """What it takes to encode samples of one size; nothing by default, as from a latent cache.

    Attributes:
        tiles: pixels and FLOPs of each tile of a clip; a sample has two clips of a size.
        text: FLOPs of a text.
    """

    tiles: tuple[tuple[int, int], ...] = ()
    text: int = 0

    def flops(self, samples: int, processes: int = 1) -> float:
        """Of the process that has most to do, where a group shares out the tiles and texts of so many samples."""
        return _flops(self, samples, processes)


@cache
def _flops(encoding: Encoding, samples: int, processes: int) -> float:
    tiles = encoding.tiles * (2 * samples)
    loads = [0.0] * processes
    for (_, flops), process in zip(tiles, owners([pixels for pixels, _ in tiles], processes), strict=True):
        loads[process] += flops
    return max(loads) + encoding.text * math.ceil(samples / processes)


def encoding_of(frozen: Mapping[str, Mapping[str, Any]], bucket: Bucket, text: int) -> Encoding:
    """What codec and text encoder take for a bucket's samples; nothing where their classes count none (`count_flops`).

    Args:
        frozen: `model.frozen` of a configuration.
        bucket: size of both clips.
        text: tokens of a sample's text.
    """
    video = (bucket.frames, bucket.height, bucket.width)
    return Encoding(tuple(_counted(frozen["codec"], video) or ()), _counted(frozen["text_encoder"], text) or 0)


def _counted(part: Mapping[str, Any], size: Any) -> Any:
    kind = located(part["class_path"])
    if not hasattr(kind, "count_flops"):
        return None
    return kind.count_flops(arguments_of(kind) | dict(part.get("init_args") or {}), size)
