"""The report page of `icve edit`: source and result of the first items side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.video import VideoError, iterate_frames, probe, resize_crop
from icve.evaluation.report import Example, write_report

if TYPE_CHECKING:
    from icve.editing.items import Item

_FRAMES = 48  # shown of a clip
_SIDE = 320  # pixels of its longer side


def write_edit_report(
    path: Path, items: Sequence[Item], results: Mapping[str, Mapping[str, Any]], folder: Path, count: int
) -> Path:
    """Write the page of the first ``count`` edited items and return its path; failed items are listed with reasons.

    Args:
        path: of the page.
        items: in the order wanted.
        results: rows of ``results.jsonl`` by id.
        folder: that holds the results.
        count: of examples shown.
    """
    examples: list[Example] = []
    failures: dict[str, str] = {}
    edited = 0
    for item in items:
        row = results.get(item.id)
        if row is None:
            continue
        if row["status"] != "ok":
            failures[item.id] = row["error"]
            continue
        edited += 1
        if len(examples) < count:
            try:
                examples.append(_example(item, row, folder))
            except VideoError as error:
                failures[item.id] = str(error)
    settings: dict[str, Any] = {"failed items": failures} if failures else {}
    settings["settings"] = next((row["settings"] for row in results.values()), {})
    return write_report(
        path,
        *([], examples, settings, {}),
        title="Edited videos",
        introduction=f"{edited} of {len(items)} items edited; the first {len(examples)} are shown, their first "
        f"{_FRAMES} frames, at most {_SIDE} pixels wide.",
        heading="Edits",
    )


def thumbnail(path: Path, start: int = 0, count: int | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """The first frames of a clip, (F, H, W, 3) uint8, small enough for a page; ``size`` (height, width) if given, as it
    must be for a folder of frames."""
    if path.is_dir() and size is not None:
        frames = iterate_png_frames(path, min(count or _FRAMES, _FRAMES))
        return np.concatenate([resize_crop(frame[None, ..., :3], size, size) for frame in frames])
    info = probe(path)
    height, width = info.displayed
    scale = min(1.0, _SIDE / max(height, width))
    size = size or (max(1, round(height * scale)), max(1, round(width * scale)))
    left = info.frames - start if count is None else count
    return np.concatenate(list(iterate_frames(path, start, min(left, _FRAMES), size)))


def _example(item: Item, row: Mapping[str, Any], folder: Path) -> Example:
    source = thumbnail(item.source, item.start, item.count)
    clips = {"source": source, "edited": thumbnail(folder / row["output"], size=source.shape[1:3])}
    facts = {
        "id": item.id,
        "frames": str(row["frames"]),
        "edited at": "{1}x{0}".format(*row["edited_size"]),
        "windows": str(row["windows"]),
        "seed": str(row["seed"]),
        "seconds": f"{row['seconds']:.1f}",
    }
    return Example(item.instruction, "", clips, None, facts, row["fps"])
