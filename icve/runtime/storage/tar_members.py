"""Members of tar files, read where they lie: ``shards/000.tar/clip.mp4`` is ``clip.mp4`` inside ``shards/000.tar``."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icve.runtime.storage.block_cache import keep_cached, key_of, read_cached

SUFFIX = ".tar"
Members = dict[str, tuple[int, int]]  # name → offset and size in bytes


def tar_of(path: Path) -> tuple[Path, str] | None:
    """The tar file that a path goes into, by its name, and the member's name; None for a path that does not."""
    for number, part in enumerate(path.parts[:-1], 1):
        if part.lower().endswith(SUFFIX):
            tar = path
            for _ in range(len(path.parts) - number):
                tar = tar.parent
            return tar, "/".join(path.parts[number:])
    return None


@functools.lru_cache(maxsize=256)
def members_of(tar: Path, size: int, version: str | None, open_tar: Callable[[Path], Any]) -> Members:
    """The regular files in a tar, from the local cache where it was read before.

    Args:
        tar: the tar file.
        size, version: by which another one of its name is told.
        open_tar: opens it.

    Raises:
        OSError: it is no tar, or ends too early.
    """
    key = key_of("members", tar, size, version)
    if version is not None and (kept := read_cached(key)) is not None:
        return {name: (offset, length) for name, offset, length in json.loads(kept)}
    members: Members = {}
    try:
        with open_tar(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise OSError(errno.EIO, f"{tar.name} is damaged or no plain tar file: {error}", str(tar)) from error
    if any(offset + length > size for offset, length in members.values()):
        raise OSError(errno.EIO, f"{tar.name} is truncated: members lie beyond its end", str(tar))
    if version is not None:
        keep_cached(key, json.dumps([[name, *place] for name, place in members.items()]).encode())
    return members


def find_member(members: Members, tar: Path, name: str) -> tuple[int, int]:
    """Offset and size of a member. Raises FileNotFoundError."""
    if name not in members:
        raise FileNotFoundError(errno.ENOENT, f"{tar.name} has no member {name}", str(tar / name))
    return members[name]


class Window(io.RawIOBase):
    """A part of a file, as a file.

    Args:
        file: the whole one, open for reading, which this closes.
        name: as others are to know it by.
        offset, size: of the part, in bytes.
    """

    def __init__(self, file: Any, name: str, offset: int, size: int) -> None:
        super().__init__()
        self.name, self._file, self._offset, self._size, self._at = name, file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._offset + self._at)
        part = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
