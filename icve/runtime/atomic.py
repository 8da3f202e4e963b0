"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# What file systems answer that cannot be asked to write at once: they have taken the data all the same.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Temporary name (hidden, in the same folder, which is made) to write a file under.

    It takes the name ``path`` when the block ends, with every byte on disk, and is removed when the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file (and its folder) under a temporary name, then rename it; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path` at the end, and vanishes where filling it fails.

    Raises:
        FileExistsError: `path` holds something, or did so when it was to become this folder.
    """
    path = Path(path)
    taken = FileExistsError(f"'{path}' is not empty: choose another folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise taken
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise taken from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_link(link: str | Path, target: str) -> None:
    """Make a link to a neighbour of this name, in one step where there was another link."""
    link = Path(link)
    temporary = _temporary(link)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def remove_folder(path: str | Path) -> None:
    """Remove a folder, if it is there; it loses its name first, so that an interrupted removal leaves no half of it."""
    path = Path(path)
    if path.exists():
        doomed = _temporary(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _temporary(path: Path) -> Path:
    # Not by the process id: processes of several machines may share a folder.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def flush(path: str | Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    if os.name == "nt" and os.path.isdir(path):
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync(descriptor: int) -> None:
    """Force an open file to disk, where its file system knows how. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
