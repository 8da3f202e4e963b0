"""Draw edits of a held-out set as one picture: a panel per edit type, its clips side by side under the instruction.

    python tools/make_edit_figure.py --evaluation runs/demo/after_sft \
        --manifest runs/demo/data/held_out/manifest.parquet --output docs/edits.gif

A .gif moves (all panels in step), a .png shows the middle frame. Which edits are shown is chosen by rule, not by hand:
``--pick median`` takes of every type the success with the median PSNR gain over copying, ``best`` the largest gain.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from icve.data.edit_types import EDIT_TYPES
from icve.data.manifest import read_manifest
from icve.data.media.video import read_frames
from icve.evaluation.synthetic import decode_clip, load_evaluation

PAPER, INK, SOFT = (255, 255, 255), (29, 31, 35), (102, 107, 117)
GAP, MARGIN = 6, 14


@dataclass(frozen=True)
class Panel:
    """One edit: its instruction and clips by label, uint8 (F,H,W,3) of one shape."""

    instruction: str
    clips: Mapping[str, np.ndarray]


def choose(rows: Sequence[Mapping[str, Any]], edit_type: str, pick: str) -> Mapping[str, Any] | None:
    """Of the type's successful edits (or all, if none succeeded) the one with the median or largest PSNR gain."""
    candidates = [row for row in rows if row["edit_type"] == edit_type]
    candidates = [row for row in candidates if row["success"]] or candidates
    if not candidates:
        return None
    ranked = sorted(candidates, key=lambda row: row["psnr"] - row["psnr_copy"])
    return ranked[-1] if pick == "best" else ranked[len(ranked) // 2]


def load_panels(evaluation: str | Path, manifest: str | Path, pick: str = "median") -> list[Panel]:
    """A panel for every edit type of a saved evaluation, in the usual order of the types."""
    held_out = read_manifest(manifest)
    by_id = {row["id"]: row for row in held_out}
    _, rows = load_evaluation(evaluation)
    chosen = filter(None, (choose(rows, edit_type, pick) for edit_type in EDIT_TYPES))
    return [
        Panel(
            row["instruction"],
            {
                "source": decode_clip(by_id[row["id"]], "source", held_out.root),
                "edited": read_frames(row["result_path"]),
                "target": decode_clip(by_id[row["id"]], "target", held_out.root),
            },
        )
        for row in chosen
    ]


def draw(panels: Sequence[Panel], frame: int, scale: int = 2, columns: int = 2) -> Image.Image:
    """The picture at one frame number; panels fill ``columns`` columns row by row, pixels enlarged ``scale`` times."""
    height, width = next(iter(panels[0].clips.values())).shape[1:3]
    cell_height, cell_width = height * scale, width * scale
    caption, label = ImageFont.load_default(15), ImageFont.load_default(12)
    panel_width = len(panels[0].clips) * (cell_width + GAP) - GAP
    panel_height = 24 + cell_height + 20
    rows = -(-len(panels) // columns)
    size = (columns * panel_width + (columns + 1) * MARGIN, rows * (panel_height + MARGIN) + MARGIN)
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    for index, panel in enumerate(panels):
        left = MARGIN + index % columns * (panel_width + MARGIN)
        top = MARGIN + index // columns * (panel_height + MARGIN)
        pen.text((left, top), f"“{panel.instruction}”", INK, caption)
        for name, clip in panel.clips.items():
            picture = Image.fromarray(clip[frame % len(clip)])
            image.paste(picture.resize((cell_width, cell_height), Image.Resampling.NEAREST), (left, top + 24))
            pen.text((left + cell_width // 2, top + 24 + cell_height + 14), name, SOFT, label, anchor="ms")
            left += cell_width + GAP
    return image


def write_figure(
    panels: Sequence[Panel], output: str | Path, fps: float = 8.0, scale: int = 2, columns: int = 2
) -> Path:
    """Write the picture as .gif (every frame) or .png (the middle frame), whole or not at all."""
    output = Path(output)
    if output.suffix not in (".gif", ".png"):
        raise ValueError(f"The picture is written as .gif or .png, not {output.name}: change --output.")
    if not panels:
        raise ValueError("The evaluation holds no edit of a known type: give one made on a synthetic test set.")
    count = len(next(iter(panels[0].clips.values())))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.tmp{output.suffix}")
    if output.suffix == ".png":
        draw(panels, count // 2, scale, columns).save(temporary)
    else:
        first, *others = (draw(panels, frame, scale, columns) for frame in range(count))
        first.save(temporary, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    os.replace(temporary, output)
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True, help="folder with figures.json and edits.jsonl")
    parser.add_argument("--manifest", required=True, help="manifest of the test set that was edited")
    parser.add_argument("--output", required=True, help=".gif or .png to write")
    parser.add_argument("--pick", choices=("median", "best"), default="median", help="which edit of a type to show")
    parser.add_argument("--scale", type=int, default=2, help="screen pixels per video pixel (default 2)")
    parser.add_argument("--columns", type=int, default=2, help="panels side by side (default 2)")
    args = parser.parse_args(argv)
    try:
        panels = load_panels(args.evaluation, args.manifest, args.pick)
        print(write_figure(panels, args.output, scale=args.scale, columns=args.columns))
    except (ValueError, FileNotFoundError) as error:
        print(f"make_edit_figure: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
