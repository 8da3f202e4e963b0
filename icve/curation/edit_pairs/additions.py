"""Additions: a removal read backwards adds the thing, with the real clip as its target."""

from __future__ import annotations

from icve.curation.stage import Outcome, Row, Stage, Workspace

_CLIP = ("path", "start", "frames")


class Additions(Stage):
    """Turns a share of the pairs with `edit_type` "remove" around; the others pass as they are.

    Reads `edit_type`, `source_*` and `target_*`; exchanges source and target, and writes `edit_type` "add" and
    `generated` "source" (which of the two a model drew; "target" where the column is absent). Nothing can be added to
    a scene by inpainting as convincingly as what was there. Comes before the instruction is written.

    Args:
        share: of the removals, 0..1, drawn by the row's key.
        seed: of the draw.

    Raises:
        ValueError: the share is not in 0..1.
    """

    batch_size = 64

    def __init__(self, share: float = 0.5, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"The share of additions lies in 0..1, not at {share}.")
        self.share, self.seed = share, seed

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._turned(row) for row in rows]

    def _turned(self, row: Row) -> Row:
        if row["edit_type"] != "remove" or self.random(row, self.seed).random() >= self.share:
            return row
        other = {"source": "target", "target": "source"}
        sides = {f"{side}_{name}": row.get(f"{other[side]}_{name}") for side in other for name in _CLIP}
        return {**row, **sides, "edit_type": "add", "generated": "source"}
