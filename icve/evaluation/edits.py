"""Edits to measure: the results of `icve edit`, matched with what is known of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icve.data.manifest import Manifest, resolve_path
from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.video import read_frames
from icve.data.media.video_folders import VIDEO_SUFFIXES
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
        folder: that holds the results.
    """

    id: str
    edit_type: str
    instruction: str
    edited: Path | None
    row: Mapping[str, Any]
    root: Path | None
    result: Mapping[str, Any]
    folder: Path | None = None

    @property
    def source(self) -> str:
        """Path of the source, as the manifest or the result has it; "" where neither does."""
        return str(self.row.get("source_path") or self.result.get("source") or "")

    def file(self, path: str, name: str) -> Path:
        """A file that the row names; ``name`` is what of the edit it is, for the message.

        Raises:
            ValueError: it is not there.
        """
        file = as_path(path) if self.root is None else resolve_path(self.root, path)
        try:
            if not file.is_dir():  # of frames
                file_state(file)
        except FileNotFoundError as error:
            advice = "check the root of its manifest"
            if self.root is None:
                advice = "give --reference, or run this in the folder that it is relative to"
            raise ValueError(f"Its {name} {path} is not there: {advice}.") from error
        return file

    def file_of_result(self, name: str) -> Path | None:
        """The file that the result has under a name ("alpha", "layer", "composite") beside its video.

        Raises:
            ValueError: it is not there.
        """
        path = self.result.get(name)
        if not path or self.folder is None:
            return None
        file = resolve_path(self.folder, path)
        if not file.exists():
            raise ValueError(f"Its {name} {path} is not there: edit it again.")
        return file


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
        results: ``results.jsonl``, beside the edited videos; or a folder of videos and folders of frames, by any
            editor, each named by the id of an edit of the reference, or by its source where that is edited once.
        reference: manifest with what is known of the edits; every row is one, also where it has no result. A row's
            result is found by its id, else by its source's file name and its instruction. None takes the results alone.

    Raises:
        FileNotFoundError, ValueError: there are no results, they are none of `icve edit`, or none is of the reference.
    """
    if results.is_dir():
        return _in_folder(results, reference)
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


def _in_folder(folder: Path, reference: Manifest | None) -> list[Edit]:
    """Edits of any editor, found by the names of their files."""
    if reference is None:
        raise ValueError(f"{folder} is a folder: give --reference, by whose ids or sources its videos are named.")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES}
    found |= {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    stems = Counter(Path(row["source_path"] or "").stem for row in reference)
    edits = []
    for row in reference:
        stem = Path(row["source_path"] or "").stem
        file = found.get(row["id"]) or (found.get(stem) if stems[stem] == 1 else None)
        result = None if file is None else {"output": file.name, "status": "ok"}
        edits.append(_edit(result, row, folder, reference.root))
    if not any(edit.edited for edit in edits):
        raise ValueError(f"No video in {folder} is named by the id or the source of an edit of the reference.")
    return edits


def _edit(result: Mapping[str, Any] | None, row: Mapping[str, Any], folder: Path, root: Path | None) -> Edit:
    known = {**(result or {}), **row}
    edited = resolve_path(folder, result["output"]) if result and result["status"] == "ok" else None
    edited = edited if edited is not None and edited.exists() else None
    about = known["id"], known.get("edit_type") or "", known["instruction"]
    return Edit(*about, edited, row, root, result or {}, folder)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for number, line in enumerate(json_lines(path), 1):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Line {number} of {path} is no result of icve edit.") from error
    return rows
