"""Pairs as training sees them, as one picture and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from icve.evaluation.report import Example, write_report
from icve.preflight.seen_rows import Inspection, SeenPair
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
    for pair in pairs:
        shown = np.linspace(0, len(pair.source) - 1, min(_COLUMNS, len(pair.source))).round().astype(int)
        height = round(_WIDTH * pair.source.shape[1] / pair.source.shape[2])
        panel = Image.new("RGB", (_COLUMNS * (_WIDTH + 4), _LINE + 2 * (height + _LINE)), "white")
        draw = ImageDraw.Draw(panel)
        bucket = "x".join(map(str, pair.row.bucket))
        draw.text((2, 2), f"{pair.row.pair.id}  {bucket}  {pair.row.pair.instruction}", fill="black")
        clips = ((pair.source, pair.row.source), (pair.target, pair.row.target))
        for line, (frames, clip) in enumerate(clips):
            top = _LINE + line * (height + _LINE)
            for column, k in enumerate(shown):
                left = column * (_WIDTH + 4)
                panel.paste(Image.fromarray(_scaled(frames[k], (height, _WIDTH))), (left, top))
                draw.text(
                    (left + 2, top + height), f"{'st'[line]} {clip.indices[k]} ({clip.seconds[k]:.2f} s)", fill="black"
                )
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
        [_example(pair) for pair in pairs],
        {"rows": summary(inspection)},
        {},
        title="What training sees",
        introduction=f"{len(pairs)} pairs of {inspection.module.manifest}, after resampling and cropping; at most "
        f"{_FRAMES} frames of each, at most {_SIDE} pixels.",
        heading="Pairs",
    )


def _example(pair: SeenPair) -> Example:
    frames, height, width, _ = pair.source.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    every = -(-frames // _FRAMES)
    clips = {
        role: np.stack([_scaled(frame, size) for frame in video[::every]])
        for role, video in (("source", pair.source), ("target", pair.target))
    }
    facts = {"id": pair.row.pair.id, "bucket": "x".join(map(str, pair.row.bucket))}
    for role, clip in (("source", pair.row.source), ("target", pair.row.target)):
        picture, taken, seconds, rate, crop = cells(clip)
        facts |= {role: f"{picture}", f"{role} frames": f"{taken} ({seconds} s, {rate} fps)", f"{role} scaled to": crop}
        facts |= {f"{role} shown": ", ".join(map(str, clip.indices[::every]))}
    rate = pair.row.source.rate / every
    return Example(pair.row.pair.instruction, "", clips, None, facts, rate or None)


def _scaled(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame
    return cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
