"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# What file systems answer that cannot be asked to write at once: they have taken the data all the same.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def whole_file(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Temporary name (hidden, in the same folder, which is made) to write a file under.

    It takes the name ``path`` when the block ends, with every byte on disk if it is to be durable, and is removed when
    the block fails. A remote path (:mod:`icve.runtime.storage`) gets an upload instead.
    """
    if (upload := getattr(path, "written_whole", None)) is not None:
        with upload() as temporary:
            yield temporary
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file (and its folder) under a temporary name, then rename it; returns the path."""
    with whole_file(path, durable=False) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


@contextlib.contextmanager
def new_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path` at the end, and vanishes where filling it fails.

    With ``replace``, a folder that is there stays until then and gives way.

    Raises:
        FileExistsError: without ``replace``, `path` holds something, or did so when it was to become this folder.
    """
    path = Path(path)
    occupied = FileExistsError(f"'{path}' is not empty: choose another folder.")
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise occupied
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            if replace:
                remove_folder(path)
            elif path.exists():
                path.rmdir()
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise occupied from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_link(link: str | Path, target: str) -> None:
    """Make a link to a neighbour of this name, in one step where there was another link."""
    link = Path(link)
    temporary = temporary_name(link)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def remove_folder(path: str | Path) -> None:
    """Remove a folder, if it is there; it loses its name first, so that an interrupted removal leaves no half of it."""
    path = Path(path)
    if path.exists():
        doomed = temporary_name(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def replace_folder(path: str | Path, new: Path) -> None:
    """Give a folder the name of another one, which is removed once it has lost it."""
    path = Path(path)
    doomed = temporary_name(path)
    if path.exists():
        os.rename(path, doomed)
    os.rename(new, path)
    shutil.rmtree(doomed, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside a file, which no other process uses."""
    # The process id alone would not do: processes of several machines may share a folder.
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")


def remove_abandoned(path: Path) -> None:
    """Remove what processes that no longer run on this machine left of a file or folder under temporary names."""
    start = f".{path.name}."
    for temporary in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        try:
            os.kill(int(temporary.name.removeprefix(start).split(".")[0]), 0)
        except (ValueError, ProcessLookupError, OverflowError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        except PermissionError:
            pass  # a living process of another user


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
