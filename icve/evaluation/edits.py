"""Edits to measure: the results of `icve edit`, matched with what is known of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icve.data.manifest import Manifest, resolve_path
from icve.data.masks import load_mask, read_mask
from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.video import read_frames, resize_crop
from icve.editing.results import ResultLog
from icve.runtime.printable import json_lines
from icve.runtime.storage.files import file_state
from icve.runtime.storage.remote_path import as_path


@dataclass(frozen=True)
class Edit:
    """An edit, by its files.

    Attributes:
        id, edit_type, instruction: of the edit; texts.
        edited: a video or a folder of frames; None where editing failed or was not tried.
        row: paths and frame ranges of source, target and mask, as a manifest has them.
        root: folder that the row's paths are relative to; None takes its source's as it is.
        result: its line of ``results.jsonl``, {} where it is missing.
    """

    id: str
    edit_type: str
    instruction: str
    edited: Path | None
    row: Mapping[str, Any]
    root: Path | None
    result: Mapping[str, Any]

    def load(self, needs: set[str]) -> dict[str, Any]:
        """Those of `icve.evaluation.metrics.metric.NEEDS` that are asked for and there, each decoded once.

        Raises:
            ValueError: the edit is missing, a file cannot be read, or clips differ in their number of frames.
        """
        if self.edited is None:
            raise ValueError("There is no result.")
        edited = read_edited(self.edited)
        loaded: dict[str, Any] = {"edited": edited, "instruction": self.instruction}
        size = edited.shape[1:3]
        for role in ("source", "target"):
            if role in needs and self.row.get(f"{role}_path"):
                loaded[role] = self._clip(role, size)
        if "mask" in needs and self.root is not None and self.row.get("mask_path"):
            path = resolve_path(self.root, self.row["mask_path"])
            mask = load_mask(path) if path.suffix == ".npz" else read_mask(path, np.arange(len(edited)))
            grey = np.repeat(mask[..., None].view(np.uint8) * 255, 3, axis=3)
            loaded["mask"] = resize_crop(grey, size)[..., 0] >= 128
        for name, clip in loaded.items():
            if name != "instruction" and len(clip) != len(edited):
                raise ValueError(f"Its {name} has {len(clip)} frames, the edited video {len(edited)}.")
        return {name: value for name, value in loaded.items() if name in needs}

    def _clip(self, role: str, size: tuple[int, int]) -> np.ndarray:
        path = self.row[f"{role}_path"]
        file = as_path(path) if self.root is None else resolve_path(self.root, path)
        try:
            file_state(file)
        except (FileNotFoundError, IsADirectoryError) as error:
            advice = "check the root of its manifest"
            if self.root is None:
                advice = "give --reference, or run this in the folder that it is relative to"
            raise ValueError(f"Its {role} {path} is not there: {advice}.") from error
        return read_frames(
            file, start=self.row.get(f"{role}_start") or 0, count=self.row.get(f"{role}_frames"), size=size
        )


def read_edited(path: Path) -> np.ndarray:
    """An edited video, or a folder of frames, as uint8 (F, H, W, 3) RGB; alpha is left out.

    Raises:
        VideoError: it cannot be read.
    """
    if path.is_dir():
        return np.stack([frame[..., :3] for frame in iterate_png_frames(path)])
    return read_frames(path)


def find_edits(results: Path, reference: Manifest | None = None) -> list[Edit]:
    """Edits of a results file.

    Args:
        results: ``results.jsonl``, beside the edited videos.
        reference: manifest with what is known of the edits; every row is one, also where it has no result. A row's
            result is found by its id, else by its source's file name and its instruction. None takes the results alone.

    Raises:
        FileNotFoundError, ValueError: there are no results, they are none of `icve edit`, or none is of the reference.
    """
    if not results.is_file():
        raise FileNotFoundError(f"There are no results at {results}: icve edit writes results.jsonl into its output.")
    rows = ResultLog(results.parent).read() if results.name == "results.jsonl" else _read(results)
    if not rows and reference is None:
        raise ValueError(f"There are no edits in {results}.")
    for row in rows.values():
        if not {"source", "instruction", "status", "settings"} <= row.keys():
            raise ValueError(f"{results} is not of icve edit: its line of {row['id']} is no result.")
    if reference is None:
        return [
            _edit(row, {"source_path": row["source"], "source_frames": row.get("frames")}, results.parent, None)
            for row in rows.values()
        ]
    by_words = {(Path(row["source"]).name, row["instruction"]): row for row in rows.values()}
    words = [(Path(row["source_path"] or "").name, row["instruction"]) for row in reference]
    found = [rows.get(row["id"]) or by_words.get(key) for row, key in zip(reference, words, strict=True)]
    if not any(found):
        raise ValueError(f"There is no result for any of the {len(found)} edits of the reference.")
    return [_edit(*pair, results.parent, reference.root) for pair in zip(found, reference, strict=True)]


def _edit(result: Mapping[str, Any] | None, row: Mapping[str, Any], folder: Path, root: Path | None) -> Edit:
    known = {**(result or {}), **row}
    edited = resolve_path(folder, result["output"]) if result and result["status"] == "ok" else None
    edited = edited if edited is not None and edited.exists() else None
    return Edit(known["id"], known.get("edit_type") or "", known["instruction"], edited, row, root, result or {})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for number, line in enumerate(json_lines(path), 1):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Line {number} of {path} is no result of icve edit.") from error
    return rows
