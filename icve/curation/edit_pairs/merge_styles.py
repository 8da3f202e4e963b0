"""MergeStyles: style edits of public sets join the run's own pairs (ICVE, paired data)."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from icve.curation.stage import Outcome, Row, Stage, Workspace
from icve.data.manifest import read_manifest, resolve_path
from icve.runtime.atomic import whole_file

# What a style pair takes along; free columns of other sets need not have the types that this run's have.
_COLUMNS = (
    *(f"{role}_{part}" for role in ("source", "target") for part in ("path", "start", "frames")),
    *("width", "height", "fps", "instruction"),
)


class MergeStyles(Stage):
    """Adds the style edits of a manifest, as `icve curate import` writes it, to the rows.

    Their videos are linked into `styles/` of the output folder (copied where links are not possible), so that all paths
    have one root. Each added row has `edit_type` "style", `origin` (its id in the manifest) and the manifest's columns
    of clip, size, rate and instruction. A row whose videos are missing is added all the same: the next stage that reads
    it rejects it with the reason. A run without any row of its own gets none added. Another content of the manifest
    under the same name does not redo the stage.

    Args:
        manifest: the set, or None to add nothing.
        columns: names in the manifest → names used here.
        root: folder its paths are relative to; None takes the recorded one, or its own folder.
        most: most rows taken, drawn by their ids; None takes all.
        seed: of the draw.

    Raises:
        ValueError: there is no such manifest, or `most` is below 1.
    """

    scope: ClassVar = "all"

    def __init__(
        self,
        manifest: str | None = None,
        columns: dict[str, str] | None = None,
        root: str | None = None,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        if manifest is not None and not Path(manifest).exists():
            raise ValueError(f"There is no manifest of style edits at '{manifest}'.")
        if most is not None and most < 1:
            raise ValueError(f"MergeStyles takes at least 1 row, not {most}.")
        self.manifest, self.columns, self.root, self.most, self.seed = manifest, columns, root, most, seed

    def seconds(self, row: Row) -> float:
        return 24 * 3600.0  # a million videos may have to be copied

    def __call__(self, rows: list[Row], work: Workspace) -> Sequence[Outcome]:
        if self.manifest is None or not rows:
            return rows
        required = ("source_path", "target_path", "instruction")
        manifest = read_manifest(self.manifest, self.root, self.columns, required)
        styles = {row["id"]: row for row in manifest if (row.get("edit_type") or "style") == "style"}  # each once
        drawn = sorted(styles, key=lambda name: _digest(self.seed, name))[: self.most]
        adopted = [self._adopt(styles[name], manifest.root, work) for name in sorted(drawn)]
        return [[rows[0], *adopted], *rows[1:]]

    def _adopt(self, row: Row, root: Path, work: Workspace) -> Row:
        kept = {name: row[name] for name in _COLUMNS if row.get(name) is not None}
        for name in ("source_path", "target_path"):
            original = resolve_path(root, row[name])
            file = work.output / "styles" / f"{_digest(row[name])}{original.suffix}"
            link(original, file)
            kept[name] = work.name(file)
        return {"key": f"style-{_digest(row['id'])}", **kept, "edit_type": "style", "origin": row["id"]}


def link(original: Path, file: Path) -> None:
    """Make a file another name of an existing one, or a copy of it where that cannot be; nothing if it is there.

    An original that is missing makes nothing.
    """
    if file.exists() or not original.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(original, file)
    except FileExistsError:
        pass  # another process was faster
    except OSError:  # another disk, or no links there
        with whole_file(file) as temporary:
            shutil.copyfile(original, temporary)


def _digest(*parts: Any) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()
