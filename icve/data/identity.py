"""Whether files and values are still what they were, by their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icve.data.cells import json_value
from icve.data.manifest import resolve_path
from icve.runtime.storage.files import file_state, read_parts
from icve.runtime.storage.remote_path import RemoteError

_BLOCK, _BLOCKS = 1 << 16, 16  # what is read of a large file


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file when it was read: its path as the manifest has it, its size in bytes, its time of change in nanoseconds
    (of a remote file, what `icve.runtime.storage.files.file_state` has instead) and a digest of its content.

    The size and digest identify it. The time only spares reading a file that was not touched since, so that a copy of
    the data, whose times differ, is still recognised.
    """

    path: str
    size: int
    modified: int
    digest: str

    @classmethod
    def of(cls, root: Path, path: str) -> FileIdentity:
        """Identity of the file that a manifest's path stands for. Raises OSError or ManifestError if there is none."""
        file = resolve_path(root, path)
        return cls(path, *file_state(file), file_digest(file))

    def difference(self, root: Path, path: str) -> str | None:
        """Why the file a row names now is not this one, in one sentence, or None if it is.

        A file that is not there (the machine that trains need not have the videos) is told by its path alone.
        """
        try:
            file = resolve_path(root, path)
            state = file_state(file)
        except RemoteError:
            raise
        except (OSError, ValueError):
            return None if path == self.path else f"it names {path} now; {self.path} was encoded."
        if path == self.path and state == (self.size, self.modified):
            return None
        if state.size == self.size and file_digest(file) == self.digest:
            return None
        return f"{file} is not the file that was encoded: its content has changed."


def file_digest(file: str | os.PathLike) -> str:
    """Digest of a file's size and content: all of it up to 1 MiB, else 16 blocks of 64 KiB spread evenly from its first
    byte to its last, so that a film of any length costs the same. Raises OSError.
    """
    size = file_state(file).size
    digest = hashlib.blake2b(f"{size}/".encode(), digest_size=16)
    parts = [(0, size)]
    if size > _BLOCK * _BLOCKS:
        starts = np.linspace(0, size - _BLOCK, _BLOCKS).astype(np.int64).tolist()
        parts = [(start, start + _BLOCK) for start in starts]
    for part in read_parts(file, parts) if size else ():
        digest.update(part)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Digest of anything JSON or a table can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=json_value).encode(), digest_size=16).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Digest of the names and content (:func:`file_digest`) of files, in any order. Raises OSError."""
    return json_digest(sorted([file.name, file_digest(file)] for file in files))
