"""Videos out of tar archives: those that rows name, and nothing that an archive may hold besides."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, cast

from icve.data.manifest import ManifestError, relative_path, resolve_path
from icve.runtime.atomic import whole_file

_NAME = re.compile(r"(?P<archive>(?P<stem>.+)\.(tar|tgz|tar\.(gz|bz2|xz)))(\.(part)?(?P<part>\d+|[a-z]{2,3}))?")
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def find_archives(folder: Path) -> list[list[Path]]:
    """Archives below a folder, each as the list of its parts in their order (``a.tar.gz.01``, ``a.tar.gz.02`` ...)."""
    found: dict[Path, list[Path]] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.startswith(".") and (match := _NAME.fullmatch(name)):
                found.setdefault(Path(place) / match["archive"], []).append(Path(place) / name)
    return list(found.values())


def unpack(root: Path, wanted: Mapping[str, tuple[int, str]], done: Callable[[], object] = lambda: None) -> list[str]:
    """Take wanted files out of the archives below a folder, each file whole or not at all.

    A member is taken for a wanted file if that one's path is where the member would lie were the archive unpacked
    beside itself or into a folder of its name, or the end of that (of two names at least). It is written to the
    place the row names, never where the archive says; members with absolute paths or ``..``, links and devices are
    passed over.

    Args:
        root: searched with all its subfolders; what paths are relative to.
        wanted: paths a row's file may have → (number of the file, path to write it to).
        done: called for every file written.

    Returns:
        What went wrong, in sentences: archives that cannot be read to their end.

    Raises:
        ManifestError: a place to write to leaves the root through a link.
        OSError: a file cannot be written.
    """
    left = {number for number, _ in wanted.values()}
    problems: list[str] = []
    for parts in find_archives(root):
        if not left:
            break
        try:
            with ExitStack() as stack:
                files: list[IO[bytes]] = [stack.enter_context(part.open("rb")) for part in parts]
                stream = cast(IO[bytes], _JoinedFiles(files))  # tarfile needs no more of a stream than `read`
                tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|*", bufsize=1 << 20))
                for member in tar:
                    if not left:
                        break
                    place = _wanted_place(member, parts[0], root, wanted, left)
                    if place is not None:
                        number, path = place
                        _write(tar, member, resolve_path(root, path))
                        left.discard(number)
                        done()
        except _UNREADABLE as error:
            names = parts[0].name if len(parts) == 1 else f"{parts[0].name} to {parts[-1].name}"
            problems.append(f"{names} cannot be read to the end: download it again ({error}).")
    return problems


def _wanted_place(
    member: tarfile.TarInfo, archive: Path, root: Path, wanted: Mapping[str, tuple[int, str]], left: set[int]
) -> tuple[int, str] | None:
    name, packed = PurePosixPath(member.name), _NAME.fullmatch(archive.name)
    if packed is None or not member.isreg() or name.is_absolute() or ".." in name.parts:
        return None
    try:
        beside = PurePosixPath(relative_path(archive.parent, root))
    except ManifestError:
        beside = PurePosixPath()
    for location in (beside / name, beside / packed["stem"] / name):
        for start in range(len(location.parts)):
            # A lone file name would fit files of any folder: it must be the whole path.
            if start and start == len(location.parts) - 1:
                break
            found = wanted.get("/".join(location.parts[start:]))
            if found is not None and found[0] in left:
                return found
    return None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> None:
    if (source := tar.extractfile(member)) is None:
        raise EOFError(f"{member.name} has no content")
    with whole_file(file) as temporary:
        with temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise EOFError(f"{member.name} ends early")


class _JoinedFiles:
    """The bytes of several open files, one after the other."""

    def __init__(self, files: list[IO[bytes]]) -> None:
        self._files = files

    def read(self, size: int) -> bytes:
        while self._files:
            if content := self._files[0].read(size):
                return content
            self._files.pop(0)
        return b""
