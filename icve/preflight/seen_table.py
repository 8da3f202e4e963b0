"""What was seen of a manifest as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from icve.preflight.seen_rows import Clip, Inspection

_HEAD = ("row", "bucket", "clip", "file", "frames", "seconds", "fps", "scaled to, cut off")


def summary(inspection: Inspection) -> str:
    """Every row, counts per bucket, and the rows left out with their reasons."""
    rows = []
    for row in inspection.rows:
        rows.append((row.pair.id, str(row.bucket), "source", *cells(row.source)))
        rows.append(("", "", "target", *cells(row.target)))
    module = inspection.module
    counts = Counter(row.bucket for row in inspection.rows)
    parts = [columns(_HEAD, rows)] if rows else []
    usable = len(inspection.selection.pairs)
    if inspection.looked_at < usable:
        parts.append(f"{inspection.looked_at} of the {usable} rows that fit a bucket were looked at.")
    parts.append("\n".join(f"{counts[bucket]:6d} rows in {bucket}" for bucket in module.buckets))
    rate = "their files' own frames" if module.fps is None else f"{module.fps:g} fps"
    left_out = f"{len(inspection.dropped)} of {inspection.selection.rows} are left out."
    parts.append(f"{len(inspection.rows)} rows can be used, at {rate}; {left_out}")
    masks, references = (
        sum(getattr(row.pair, name) is not None for row in inspection.rows) for name in ("mask", "reference")
    )
    if masks or references:
        left = "" if module.references or not references else " (not read: data.init_args.references is off)"
        parts.append(f"{masks} of them have a mask, {references} a reference picture{left}.")
    if inspection.selection.slow:
        parts.append(module.choice.describe(inspection.selection.slow))
    if inspection.dropped:
        parts.append("\n".join(f"left out: {name}: {reason}" for name, reason in inspection.dropped))
    return "\n\n".join(parts)


def cells(clip: Clip) -> tuple[str, ...]:
    """File, frames, seconds, rate and crop of a clip."""
    picture = f"{clip.shape[0]}x{clip.shape[1]}, {clip.fps:.4g} fps"
    frames = f"{len(clip.indices)} of {clip.indices[0]}–{clip.indices[-1]}"
    seconds = f"{clip.seconds[0]:.2f}–{clip.seconds[-1]:.2f}"
    crop = f"{clip.scaled[0]}x{clip.scaled[1]}, {clip.cut_off:.0%}" + (", stretched" if clip.stretched else "")
    return picture, frames, seconds, f"{clip.rate:.4g}" + (", slow" if clip.slow else ""), crop


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)
