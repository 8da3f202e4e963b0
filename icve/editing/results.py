"""``results.jsonl``: one line per finished item, shared by every process that writes into the folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icve.atomic import write_text

try:
    import fcntl
except ImportError:  # Windows: one process per output folder
    fcntl = None


class ResultLog:
    """The results of a folder. A line is added when an item is finished; the last line of an id is the valid one."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / "results.jsonl"
        self._lock = Path(folder) / ".results.lock"

    def read(self) -> dict[str, dict[str, Any]]:
        """Results by id. A line that a kill cut short is passed over."""
        rows: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict) and "id" in row:
                        rows.pop(row["id"], None)
                        rows[row["id"]] = row
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a result. Raises OSError when it cannot be written."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._locked(), self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # what a kill left of a line
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def tidy(self) -> None:
        """Leave one line per id."""
        with self._locked():
            rows = self.read()
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("a") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
