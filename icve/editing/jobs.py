"""What is edited, how, and what became of it: the words that decoding, the model and writing share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icve.data.latent_grid import LatentGrid
from icve.data.media.video import VideoError
from icve.data.media.video_formats import FORMATS
from icve.data.media.video_index import VideoInfo, index_packets
from icve.editing.items import Item, result_name
from icve.editing.windows import model_size, windows

KINDS = ("decode", "encode", "model", "write")  # of work, for which seconds are counted


@dataclass(frozen=True)
class Clip:
    """What is edited of a file and how: known from its packets, before anything is decoded."""

    path: Path
    info: VideoInfo
    start: int
    frames: int
    size: tuple[int, int]  # (height, width) at which it is edited
    spans: list[tuple[int, int]]
    padded: int  # frames that the model sees of a window

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, frames) that the model sees; windows of one shape can be batched."""
        return (*self.size, self.padded)


@dataclass(frozen=True)
class Settings:
    """How everything is edited. Sampling arguments are those of ``EditPipeline.edit_latents``.

    ``size``: "source" for the source's displayed size, "model" for the size it is edited at. ``window``: frames per
    window. ``side_by_side``: also write source and result in one picture. ``format``: of the results, a key
    of :data:`icve.data.media.video_formats.FORMATS`. ``grid``: the model's.
    """

    sampling: dict[str, Any]
    window: int
    budget: int
    size: str = "source"
    side_by_side: bool = False
    crf: int = 16
    batch_size: int | None = None
    grid: LatentGrid = field(default_factory=LatentGrid)
    format: str = "mp4"

    def file_name(self, item: Item) -> str:
        """Name of an item's result, a file or a folder of frames, in the folder of results; of a picture, a picture."""
        return result_name(item, FORMATS[self.format].suffix)


@dataclass
class Outcome:
    """What became of an item: ``error`` is None when its file is in place; ``note`` says what of it was left out."""

    item: Item
    clip: Clip | None = None
    error: str | None = None
    seconds: float = 0.0
    note: str | None = None


@dataclass
class Progress:
    """Seconds of work by kind, over all threads, and windows done."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.seconds[kind] += seconds


def clip_of(item: Item, settings: Settings) -> Clip:
    """Look at an item's file and decide on its size and windows.

    Raises:
        VideoError: the file cannot be read, or has not the frames asked for.
    """
    info = index_packets(item.source).info
    frames = info.frames - item.start if item.count is None else item.count
    if frames < 1 or item.start + frames > info.frames:
        raise VideoError(item.source, f"it has {info.frames} frames, not the frames from {item.start} on asked for.")
    size = model_size(*info.displayed, settings.budget, settings.grid.multiple)
    spans = windows(frames, settings.window)
    return Clip(item.source, info, item.start, frames, size, spans, settings.grid.padded(spans[0][1]))


def plan(items: Sequence[Item], settings: Settings) -> tuple[list[tuple[Clip, list[Item]]], list[tuple[Item, str]]]:
    """Clips with their items, those of one shape together; and the items that cannot be edited, with the reason."""
    groups: dict[tuple, list[Item]] = {}
    refused: list[tuple[Item, str]] = []
    for item in items:
        if item.problem is not None:
            refused.append((item, item.problem))
        else:
            groups.setdefault((item.source, item.start, item.count), []).append(item)

    def look(group: list[Item]) -> Clip | str:
        try:
            return clip_of(group[0], settings)
        except VideoError as error:
            return f"{group[0].shown_source} cannot be decoded: {error.reason}"

    with ThreadPoolExecutor(4) as pool:
        found = list(zip(pool.map(look, groups.values()), groups.values(), strict=True))
    refused += [(item, clip) for clip, group in found if isinstance(clip, str) for item in group]
    work = [(clip, group) for clip, group in found if not isinstance(clip, str)]
    return sorted(work, key=lambda pair: pair[0].shape), refused
