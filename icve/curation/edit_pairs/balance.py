"""Balance: no kind of edit outweighs the others (ICVE, paired data: the last step)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import ClassVar

import numpy as np

from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace


class Balance(Stage):
    """Keeps at most so many rows of each `edit_type` (rows without one are of type "other").

    Which rows stay depends on their keys and the seed alone, so a larger cap keeps what a smaller one kept. The others
    are rejected as "over its type's share".

    Args:
        per_type: most rows of a type; None for no such limit.
        max_ratio: most rows of a type, as a multiple of what the median type has (of an even number of types, the
            lower of the two in the middle): rare types do not empty the set. None for no such limit.
        seed: selects other rows.

    Raises:
        ValueError: a limit is not positive.
    """

    scope: ClassVar = "all"

    def __init__(self, per_type: int | None = None, max_ratio: float | None = 1.0, seed: int = 0) -> None:
        if (per_type is not None and per_type < 1) or (max_ratio is not None and max_ratio <= 0):
            raise ValueError("Balance needs per_type of at least 1 and max_ratio above 0, or null for no limit.")
        self.per_type, self.max_ratio, self.seed = per_type, max_ratio, seed

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        members: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            members[row.get("edit_type") or "other"].append(row["key"])
        limits = [] if self.per_type is None else [self.per_type]
        if self.max_ratio is not None and rows:
            median = np.quantile([len(keys) for keys in members.values()], 0.5, method="lower")
            limits.append(max(1, int(self.max_ratio * median)))
        cap = min(limits, default=None)
        outcomes: dict[str, Outcome] = {row["key"]: row for row in rows}
        for name, keys in members.items():
            left_out = sorted(keys, key=self._rank)[cap:] if cap is not None else []
            detail = f"{name}: {len(keys)} rows, {cap} kept"
            outcomes |= dict.fromkeys(left_out, Rejected("over its type's share", detail))
        return list(outcomes.values())

    def _rank(self, key: str) -> bytes:
        return hashlib.blake2b(f"{self.seed}:{key}".encode(), digest_size=8).digest()
