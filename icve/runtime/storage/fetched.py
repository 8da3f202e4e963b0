"""Folders and files behind URLs, copied to a local disk for what opens files by their names: checkpoints, weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from icve.runtime.atomic import remove_folder
from icve.runtime.folder_contents import checksum
from icve.runtime.locks import locked
from icve.runtime.storage.block_cache import FOLDER, FOLDERS, cache_folder, key_of, note_written
from icve.runtime.storage.remote_file import RemoteState, read_ranges, remote_state, state_of
from icve.runtime.storage.remote_path import OWN_DISK, RemoteError, RemotePath, as_path, forget

_PART, _AT_ONCE = 1 << 24, 4  # bytes of a request, and requests for a file at the same time
_THREADS = 4  # files at the same time
_ORIGIN = "origin"  # beside a copy in the cache: the URL that it is of, touched whenever it is used


class DamagedCopy(ValueError):
    """A remote file is not what was written, in words that a sentence can go on with."""


def listed_states(folder: RemotePath) -> dict[str, RemoteState]:
    """Sizes and versions of all files below a folder, by relative name. Raises FileNotFoundError, RemoteError."""
    return {name: state_of(folder / name, details) for name, details in folder.listing().items()}


def fetch_folder(
    source: RemotePath, files: Mapping[str, RemoteState], target: Path, checksums: Mapping[str, int] | None = None
) -> Path:
    """Copy files below a remote folder to a local one, which appears whole or not at all.

    One process does so, while others that want the same wait. What an interrupted one left is gone on from.

    Args:
        source: the remote folder.
        files: relative names, with what the server says of them.
        target: the local folder. One that has files of these sizes is taken as it is.
        checksums: CRC-32 of files whose bytes are looked at.

    Raises:
        DamagedCopy: a file has other bytes than its checksum says.
        RemoteError: the server does not give a file, or gives another one by now.
        ValueError: there is no room for it, or a name leads out of the folder.
    """
    if outside := next((name for name in files if ".." in Path(name).parts or Path(name).is_absolute()), None):
        raise ValueError(f"{source} has a file named {outside}, which leads out of the folder: rename or remove it.")
    with locked(target.parent / ".fetch.lock"):
        if _is_whole(target, files):
            return target
        remove_folder(target)
        partial = target.with_name(f".{target.name}.fetched.tmp")
        missing = sum(state.size for state in files.values()) - sum(_size(partial / name) for name in files)
        if missing > (free := shutil.disk_usage(target.parent).free):
            raise ValueError(_no_room(source, target, f"{missing / 1e9:.1f} GB are needed and {free / 1e9:.1f} free"))
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                for done in [
                    pool.submit(_fetch, source / name, state, partial / name, (checksums or {}).get(name))
                    for name, state in files.items()
                ]:
                    done.result()
            os.replace(partial, target)
        except OSError as error:
            if error.errno not in OWN_DISK:
                raise
            raise ValueError(_no_room(source, target, str(error.strerror))) from error
    return target


def cached_folder(
    source: RemotePath, files: Mapping[str, RemoteState], checksums: Mapping[str, int] | None = None
) -> Path:
    """A copy of files below a remote folder in the local cache, in a folder of the same name; see `fetch_folder`.

    It stays there for as long as there is room for it in the cache, and for an hour after its last use in any case.
    """
    place = cache_folder() / FOLDERS / key_of(source, *sorted(files.items()))
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / _ORIGIN).write_text(str(source), encoding="utf-8")
    except OSError as error:
        raise ValueError(_no_room(source, place, str(error.strerror))) from error
    known = (place / source.name).is_dir()
    copy = fetch_folder(source, files, place / source.name, checksums)
    if not known:
        note_written(sum(state.size for state in files.values()))
    return copy


def cached_file(file: RemotePath, beside: Sequence[str] = ()) -> Path:
    """A copy of a file in the local cache, with those of other names that lie beside it; see `cached_folder`.

    Raises FileNotFoundError as well.
    """
    files = {file.name: remote_state(file)}
    for name in beside:
        try:
            files[name] = remote_state(file.with_name(name))
        except (FileNotFoundError, IsADirectoryError):
            continue
    return cached_folder(file.parent, files) / file.name


def origin_of(path: str | os.PathLike) -> Path:
    """The URL that a path in the cache is a copy of; any other path, made absolute, and a URL as it is."""
    path = as_path(path).resolve()
    folders = (cache_folder() / FOLDERS).resolve()
    if not path.is_relative_to(folders) or len(parts := path.relative_to(folders).parts) < 2:
        return path
    origin = as_path((folders / parts[0] / _ORIGIN).read_text(encoding="utf-8"))
    return origin.joinpath(*parts[2:])


def _is_whole(folder: Path, files: Mapping[str, RemoteState]) -> bool:
    return folder.is_dir() and all(
        (folder / name).is_file() and _size(folder / name) == state.size for name, state in files.items()
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _fetch(source: RemotePath, state: RemoteState, file: Path, crc: int | None) -> None:
    """Copy a file, from where an earlier attempt has ended; once more from its beginning where that spoilt it."""
    forget(source)
    began, found = _size(file), remote_state(source)
    _fetch_rest(source, state.size, file)
    if crc is not None and checksum(file) != crc:
        file.unlink()
        if began:  # perhaps of another version
            _fetch(source, state, file, crc)
            return
        raise DamagedCopy(f"{source} is not what was written (its checksum differs)")
    if crc is None:
        forget(source)
        if remote_state(source) != found or found.size != state.size:
            file.unlink()
            raise RemoteError(f"{source} was replaced while it was copied: give the same command again.")


def _fetch_rest(source: RemotePath, size: int, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        if stream.tell() > size:
            stream.truncate(0)
        while (at := stream.seek(0, os.SEEK_END)) < size:
            starts = range(at, min(size, at + _AT_ONCE * _PART), _PART)
            for data in read_ranges(source, [(start, min(size, start + _PART)) for start in starts]):
                stream.write(data)


def _no_room(source: RemotePath, target: Path, reason: str) -> str:
    advice = "free space there"
    if target.is_relative_to(cache_folder()):
        advice += f", or name another folder in the environment variable {FOLDER}"
    return f"{source} cannot be copied into {target.parent} ({reason}): {advice}."
