"""``results.jsonl``: one line per finished item, shared by every process that writes into the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from icve.data.media.png_frames import remove_frames
from icve.editing.items import CONDITIONS, Item, result_name
from icve.editing.jobs import Outcome, Settings
from icve.runtime.atomic import fsync, write_text
from icve.runtime.locks import locked
from icve.runtime.printable import json_line, json_lines
from icve.runtime.storage.fetched import origin_of
from icve.runtime.storage.files import file_state
from icve.runtime.storage.remote_path import RemotePath


class ResultLog:
    """The results of a folder, in ``NAME.jsonl``. A line is added when an item is finished; the last line of an id is
    the valid one."""

    def __init__(self, folder: str | os.PathLike, name: str = "results") -> None:
        self.path = Path(folder) / f"{name}.jsonl"
        self._lock = Path(folder) / f".{name}.lock"

    def read(self) -> dict[str, dict[str, Any]]:
        """Results by id. A line that a kill cut short is passed over."""
        rows: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            for line in json_lines(self.path, errors="replace"):
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict) and "id" in row:
                        rows.pop(row["id"], None)
                        rows[row["id"]] = row
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a result. Raises OSError when it cannot be written."""
        line = json_line(row).encode()
        with locked(self._lock), self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # what a kill left of a line
                    line = b"\n" + line
            file.write(line)
            file.flush()
            fsync(file.fileno())

    def tidy(self) -> None:
        """Leave one line per id."""
        with locked(self._lock):
            rows = self.read()
            write_text(self.path, "".join(map(json_line, rows.values())))


def item_key(item: Item, settings: Settings, model: str) -> str:
    """Hash of everything a result depends on: an item with another one is edited again."""
    source = file_identity(item.source)
    window = [settings.window, settings.budget, settings.size, settings.side_by_side, settings.crf, settings.format]
    content = [source, item.start, item.count, item.instruction, item.seed, settings.sampling, window, model]
    content += [file_identity(file) for file in (item.mask, item.reference)] if item.mask or item.reference else []
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def file_identity(file: Path | None) -> list[Any]:
    """A file by its path, size in bytes and time of change in ns; the last two are None where it is not there."""
    try:
        size, modified = file_state(file or "")
        return [str((file or Path()).resolve()), size, modified]
    except OSError:
        return [str(file), None, None]


def _named(part: Path) -> Path:
    """A model's folder as others find it: what was copied from a URL is at that URL."""
    origin = origin_of(part)
    return origin if isinstance(origin, RemotePath) else part


def is_done(item: Item, known: dict, keys: dict, settings: Settings, output: Path) -> bool:
    """Whether a result of this key is recorded in ``known`` and its files are there."""
    row = known.get(item.id, {})
    files = [output / settings.file_name(item)]
    files += [output / "side_by_side" / result_name(item, ".mp4")] if settings.side_by_side else []
    return row.get("status") == "ok" and row.get("key") == keys[item.id] and all(file.exists() for file in files)


def remove_result(path: Path) -> None:
    """Remove an item's file or folder of frames, if it is there."""
    remove_frames(path) if path.is_dir() else path.unlink(missing_ok=True)


def result_row(outcome: Outcome, settings: Settings, parts: list[Path], key: str) -> dict[str, Any]:
    """The line of an item; ``parts`` are the model's folders."""
    item, clip = outcome.item, outcome.clip
    used = {"model": str(_named(parts[0])), **settings.sampling, "window": settings.window, "size": settings.size}
    row: dict[str, Any] = {
        "id": item.id,
        "source": item.shown_source,
        "instruction": item.instruction,
        "output": None if outcome.error else settings.file_name(item),
        "seed": item.seed,
        **{name: str(file) for name in CONDITIONS if (file := getattr(item, name)) is not None},
        "settings": used,
        "seconds": round(outcome.seconds, 3),
        "status": "failed" if outcome.error else "ok",
        "error": outcome.error,
        "note": outcome.note,
        "key": key,
    }
    if clip is not None:
        row |= {"frames": clip.frames, "fps": round(clip.info.fps, 4), "edited_size": list(clip.size)}
        row |= {"windows": len(clip.spans)}
    return row
