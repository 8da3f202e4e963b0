"""A bounded cache of remote data on the local disk, which processes share: blocks of videos, tables, indices of tars.

The environment says where it is (``ICVE_CACHE``; ``~/.cache/icve``) and how large it may grow (``ICVE_CACHE_GB``; 20;
0 keeps nothing of videos). Files appear whole by renaming, and their content carries a checksum; those that were not
used for the longest time go first. Where the disk takes nothing more, all goes on without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zlib
from hashlib import blake2b
from pathlib import Path

from icve.runtime.atomic import remove_folder, whole_file
from icve.runtime.locks import AlreadyLocked, locked

log = logging.getLogger(__name__)

FOLDER, SIZE = "ICVE_CACHE", "ICVE_CACHE_GB"
FOLDERS = "folders"  # in the cache: copies of folders, each in a folder of its own that goes as a whole
_DEFAULT_GB = 20.0
_FRESH = 60.0  # seconds within which a file's use is not noted again
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's, and a copy of a folder is no longer in use
_LEFT = 0.9  # share of the size that clearing leaves
_CHECKED = 32  # a process looks at the whole after it wrote this part of the size

_written = 0  # bytes of this process since it looked
_full = False


def cache_folder() -> Path:
    """Folder of the cache, which need not be there."""
    named = os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "icve")
    return Path(named).expanduser()


def cache_size() -> int:
    """Bytes that the cache may take."""
    text = os.environ.get(SIZE, str(_DEFAULT_GB))
    try:
        size = float(text)
        if not 0 <= size < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{SIZE} must be a number of gigabytes of at least 0, not {text!r}.") from None
    return int(size * 1e9)


def key_of(*parts: object) -> str:
    """A file name for what the parts say."""
    return blake2b("\n".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def read_cached(key: str) -> bytes | None:
    """What was kept under a key; None for nothing, also where a crash left something else."""
    try:
        file = _file(key)
        content = file.read_bytes()
        note_use(file)
    except OSError:
        return None
    data, checksum = content[:-4], content[-4:]
    return data if checksum == _checksum(data) else None


def keep_cached(key: str, data: bytes) -> None:
    """Keep something, if the cache may be so large and the disk takes it."""
    global _full
    if _full or cache_size() < len(data):
        return
    try:
        with whole_file(_file(key), durable=False) as temporary:
            temporary.write_bytes(data + _checksum(data))
        note_written(len(data))
    except OSError as error:
        _full = True  # for this process: trying again for every block would only take time
        log.warning("The cache %s takes nothing more (%s): remote data is read without it.", cache_folder(), error)


def note_use(file: Path) -> None:
    """Keep a file of the cache from being the first to go."""
    with contextlib.suppress(OSError):
        if time.time() - file.stat().st_mtime > _FRESH:
            os.utime(file)


def note_written(size: int) -> None:
    """Clear the cache where it may have grown beyond its size by what this process wrote."""
    global _written
    first, limit = _written == 0, cache_size()
    _written += size
    if first or _written > limit // _CHECKED:
        _written = 1
        # Another process that clears does so for all.
        with contextlib.suppress(AlreadyLocked, OSError), locked(cache_folder() / ".lock", wait=False):
            _clear(limit)


def _clear(limit: int) -> None:
    folders, now = cache_folder() / FOLDERS, time.time()
    held: dict[Path, tuple[float, int]] = {}  # what goes as a whole: when it was used, and its bytes
    for place, _, names in os.walk(cache_folder()):
        for name in names:
            file = Path(place, name)
            with contextlib.suppress(OSError):  # another process removed it
                stat = file.stat()
                if file.is_relative_to(folders):
                    file = folders / file.relative_to(folders).parts[0]
                elif name.startswith("."):
                    if name.endswith(".tmp") and now - stat.st_mtime > _ABANDONED:
                        file.unlink()
                    continue
                used, size = held.get(file, (0.0, 0))
                held[file] = (max(used, stat.st_mtime), size + stat.st_size)
    total = sum(size for _, size in held.values())
    if total <= limit:
        return
    for file, (used, size) in sorted(held.items(), key=lambda entry: entry[1]):
        if file.parent == folders and now - used < _ABANDONED:
            continue
        with contextlib.suppress(OSError):
            remove_folder(file) if file.parent == folders else file.unlink()
            total -= size
        if total <= _LEFT * limit:
            return


def _file(key: str) -> Path:
    return cache_folder() / "blocks" / key[:2] / key


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")
