"""The one way to media files: local, remote, or members of a tar file of either kind.

Whoever reads a file that a manifest names asks here, not ``os`` or ``open``.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from icve.runtime.atomic import temporary_name
from icve.runtime.storage.block_cache import FOLDER, cache_folder, key_of, note_use, note_written
from icve.runtime.storage.remote_file import RemoteFile, RemoteState, read_ranges, remote_state, state_of
from icve.runtime.storage.remote_path import RemotePath, as_path, request
from icve.runtime.storage.tar_members import Members, Window, find_member, members_of, tar_of


class FileState(NamedTuple):
    """A file as it is now: its size in bytes, and its time of change in nanoseconds.

    For a remote file, the second is a number made of its entity tag, or else of its time.
    """

    size: int
    modified: int


def file_state(path: str | os.PathLike) -> FileState:
    """State of a file.

    Raises:
        FileNotFoundError: there is none, nor such a member of a tar file.
        IsADirectoryError: it is a folder.
        OSError: the file system refuses, or the tar file is damaged; RemoteError: the server does.
    """
    place, member = _member(path)
    if isinstance(place, RemotePath):
        size, modified = _as_numbers(remote_state(place))
    else:
        found = os.stat(place)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        size, modified = found.st_size, found.st_mtime_ns
    return FileState(size if member is None else member[1], modified)


def listed_files(folder: RemotePath) -> dict[str, FileState]:
    """All files below a remote folder by relative name, in order, with their states: one question for many.

    Raises FileNotFoundError, RemoteError.
    """
    return {name: _as_numbers(state_of(folder / name, details)) for name, details in folder.listing().items()}


def _as_numbers(state: RemoteState) -> FileState:
    if state.version is None:
        return FileState(state.size, 0)
    return FileState(state.size, int.from_bytes(blake2b(state.version.encode(), digest_size=7).digest(), "big"))


def is_plain(path: str | os.PathLike) -> bool:
    """Whether a path is one of the local file system, which any library can open by its name."""
    return not isinstance(as_path(path), RemotePath) and _tar(as_path(path)) is None


def open_file(path: str | os.PathLike) -> io.BufferedReader:
    """Open a file to read its bytes, at any place of it. Raises as :func:`file_state`."""
    place, member = _member(path)
    if member is None and not isinstance(place, RemotePath):
        return open(place, "rb")
    raw = _open_whole(place)
    if member is None:
        return io.BufferedReader(raw, 1 << 16)
    return io.BufferedReader(Window(raw, str(as_path(path)), *member), 1 << 16)


def tar_members(tar: Path) -> Members:
    """Offset and size in bytes of a tar file's members, by name. Raises OSError for one that is none, RemoteError."""
    if isinstance(tar, RemotePath):
        state = remote_state(tar)
    else:
        tar = tar.absolute()
        found = os.stat(tar)
        state = RemoteState(found.st_size, str(found.st_mtime_ns))
    return members_of(tar, *state, _open_headers)


def read_parts(path: str | os.PathLike, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes of a file by (start, end), few of them: no more is read, and nothing is kept.

    Raises as :func:`file_state`.
    """
    place, member = _member(path)
    offset = 0 if member is None else member[0]
    if isinstance(place, RemotePath):
        return read_ranges(place, [(offset + start, offset + end) for start, end in parts])
    found = []
    with open(place, "rb") as file:
        for start, end in parts:
            file.seek(offset + start)
            found.append(file.read(end - start))
    return found


def local_copy(path: Path) -> Path:
    """A remote file, or a remote folder's Parquet files, copied into the local cache; a local path as it is.

    Raises:
        FileNotFoundError: there is no such file, nor a Parquet file in such a folder.
        RemoteError: the server does not give it.
        OSError: the cache cannot be written.
    """
    if not isinstance(path, RemotePath):
        return path
    try:
        return _copied(path, key_of(path, *remote_state(path)))
    except IsADirectoryError:
        pass
    names = [file for file in path.iterdir() if file.suffix.lower() == ".parquet" and file.name[0] not in "._"]
    if not names:
        raise FileNotFoundError(errno.ENOENT, "holds no Parquet files", str(path))
    folder = key_of(path, *((name, remote_state(name)) for name in names))
    for name in names:
        copy = _copied(name, folder)
    return copy.parent


def _copied(file: RemotePath, folder: str) -> Path:
    state = remote_state(file)
    copy = cache_folder() / "copies" / folder / file.name
    if state.version is not None and copy.is_file() and copy.stat().st_size == state.size:
        note_use(copy)
        return copy
    url = str(file)
    temporary = temporary_name(copy)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise OSError(
            f"{file} cannot be copied into {cache_folder()} ({error.strerror}): free space there, or name another "
            f"folder in the environment variable {FOLDER}."
        ) from error

    def get(files) -> None:
        files.get_file(url, str(temporary))
        if (size := temporary.stat().st_size) != state.size:
            raise OSError(f"{size} of {state.size} bytes came")

    try:
        request(file, get)
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
    note_written(state.size)
    return copy


def _tar(path: Path) -> tuple[Path, str] | None:
    """The tar file and member that a path names; None where what looks like a tar is a folder, or is not there."""
    found = tar_of(path)
    if found is None:
        return None
    if isinstance(found[0], RemotePath):
        try:
            remote_state(found[0])
        except (IsADirectoryError, FileNotFoundError):
            return None
        return found
    return found if os.path.isfile(found[0]) else None


def _member(path: str | os.PathLike) -> tuple[Path, tuple[int, int] | None]:
    """The file to open for a path, and the part of it that is meant."""
    place = as_path(path)
    if (found := _tar(place)) is None:
        return place, None
    tar, name = found
    return tar, find_member(tar_members(tar), tar, name)


def _open_whole(path: Path) -> Any:
    return RemoteFile(path) if isinstance(path, RemotePath) else path.open("rb")


def _open_headers(path: Path) -> Any:
    """A tar file whose headers are to be read: of a remote one small parts are asked for."""
    return RemoteFile(path, keep=False) if isinstance(path, RemotePath) else path.open("rb")
