"""Pairs as training sees them, as one picture and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from icve.evaluation.report import Example, write_report
from icve.preflight.seen_rows import Inspection, Seen, SeenPair
from icve.preflight.seen_table import cells, summary
from icve.runtime.atomic import whole_file

_COLUMNS = 6  # frames of a clip in the picture
_WIDTH = 200  # pixels of each
_LINE = 18  # pixels of a line of text
_SIDE = 320  # pixels of the longer side on the page
_FRAMES = 40  # of a clip on the page


def write_sheet(path: Path, pairs: Sequence[SeenPair]) -> Path:
    """Write a PNG, whole or not at all: for each pair a line of text, frames of the source, and those of the target.

    The frames are spread evenly over the clip, the same of both; each has its number in the file under it.
    """
    from PIL import Image, ImageDraw

    panels = []
    for row, videos in pairs:
        count, tall, wide, _ = videos["source"].shape
        shown = np.linspace(0, count - 1, min(_COLUMNS, count)).round().astype(int)
        height = round(_WIDTH * tall / wide)
        panel = Image.new("RGB", (_COLUMNS * (_WIDTH + 4), _LINE + 2 * (height + _LINE)), "white")
        draw = ImageDraw.Draw(panel)
        draw.text((2, 2), f"{row.pair.id}  {row.bucket}  {row.pair.instruction}", fill="black")
        for line, (role, clip) in enumerate(row.clips.items()):
            top = _LINE + line * (height + _LINE)
            for column, k in enumerate(shown):
                left = column * (_WIDTH + 4)
                panel.paste(Image.fromarray(_scaled(videos[role][k], (height, _WIDTH))), (left, top))
                text = f"{role[0]} {clip.indices[k]} ({clip.seconds[k]:.2f} s)"
                draw.text((left + 2, top + height), text, fill="black")
        panels.append(panel)
    sheet = Image.new("RGB", (_COLUMNS * (_WIDTH + 4), sum(panel.height + 8 for panel in panels)), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height + 8
    with whole_file(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def write_page(path: Path, pairs: Sequence[SeenPair], inspection: Inspection) -> Path:
    """Write a page on which source and target play in step at their true speed, with everything inside the file."""
    return write_report(
        path,
        [],
        [_example(row, videos) for row, videos in pairs],
        {"rows": summary(inspection)},
        {},
        title="What training sees",
        introduction=f"{len(pairs)} pairs of {inspection.of.manifest}, after resampling and cropping; at most "
        f"{_FRAMES} frames of each, at most {_SIDE} pixels.",
        heading="Pairs",
    )


def _example(row: Seen, videos: Mapping[str, np.ndarray]) -> Example:
    frames, height, width, _ = videos["source"].shape
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    every = -(-frames // _FRAMES)
    clips = {role: np.stack([_scaled(frame, size) for frame in video[::every]]) for role, video in videos.items()}
    facts = {"id": row.pair.id, "bucket": str(row.bucket)}
    for role, clip in row.clips.items():
        picture, shown, seconds, rate, crop = cells(clip)
        facts |= {role: f"{picture}", f"{role} frames": f"{shown} ({seconds} s, {rate} fps)", f"{role} scaled to": crop}
        facts |= {f"{role} shown": ", ".join(map(str, clip.indices[::every]))}
    return Example(row.pair.instruction, "", clips, None, facts, row.source.rate / every or None)


def _scaled(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame
    return cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
