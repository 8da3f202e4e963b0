"""Remote files read by ranges: in blocks, which the local disk keeps."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from icve.runtime.storage.block_cache import keep_cached, key_of, read_cached
from icve.runtime.storage.remote_path import RemoteError, RemotePath, remembered, request, version_of

BLOCK = 1 << 20  # bytes: about what a store answers in the time that asking takes
_AHEAD = 8  # blocks of one request, at most, where a file is read on and on
_HELD = 16  # blocks of an open file in memory


class RemoteState(NamedTuple):
    """Size of a remote file in bytes, and its version; None where the server has no word for it."""

    size: int
    version: str | None


def remote_state(path: RemotePath) -> RemoteState:
    """Size and version of a remote file, asked for once a minute at most.

    Raises:
        FileNotFoundError: there is none.
        IsADirectoryError: it is a folder.
        RemoteError: the server does not say.
    """
    return remembered(path, lambda: state_of(path, path.details()))


def state_of(path: RemotePath, details: dict[str, Any]) -> RemoteState:
    """What a server's word on a file means. Raises as :func:`remote_state`."""
    if details["type"] == "directory":
        raise IsADirectoryError(21, "Is a directory", str(path))
    if details.get("size") is None:
        raise RemoteError(f"{path} cannot be read in parts: its server does not say how large it is.")
    return RemoteState(int(details["size"]), version_of(details))


def read_remote(path: RemotePath, start: int, end: int) -> bytes:
    """Bytes from ``start`` up to ``end``, all of them. Raises as :func:`request`."""
    return read_ranges(path, [(start, end)])[0]


def read_ranges(path: RemotePath, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes of several (start, end), asked for at the same time; all of them. Raises as :func:`request`."""
    url, (starts, ends) = str(path), zip(*ranges, strict=True)

    def ask(files) -> list[bytes]:
        if len(ranges) == 1:
            found = [files.cat_file(url, start=starts[0], end=ends[0])]
        else:
            found = files.cat_ranges([url] * len(ranges), list(starts), list(ends), on_error="raise")
        for (start, end), data in zip(ranges, found, strict=True):
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")
        return found

    return request(path, ask)


class RemoteFile(io.RawIOBase):
    """A remote file, open for reading.

    A block that is neither in memory nor on the local disk is asked for; where a file is read on, several at once.

    Args:
        path: of the file.
        keep: keep blocks on the local disk, and ask for whole ones; otherwise small ones, in memory only.

    Raises:
        FileNotFoundError, IsADirectoryError, RemoteError: as :func:`remote_state`; reading raises RemoteError too.
    """

    def __init__(self, path: RemotePath, keep: bool = True) -> None:
        super().__init__()
        self.path, self.name = path, str(path)
        self.size, version = remote_state(path)
        self._block = BLOCK if keep else 1 << 16
        self._key = (path, self.size, version) if keep and version is not None else None
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._at, self._next, self._ahead = 0, 0, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence])
        return self._at

    def readinto(self, buffer) -> int:
        if self._at >= self.size:
            return 0
        number, start = divmod(self._at, self._block)
        part = self._bytes(number)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _bytes(self, number: int) -> bytes:
        """A block."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        data = self._cached(number)
        if data is None:
            self._fetch(number)
            return self._held[number]
        self._hold(number, data)
        return data

    def _fetch(self, number: int) -> None:
        """Ask for a block, and for more of those behind it the longer the file has been read on."""
        self._ahead = min(_AHEAD, 2 * self._ahead) if number and number == self._next else 1
        last = number + 1
        while last < number + self._ahead and last * self._block < self.size and last not in self._held:
            if (data := self._cached(last)) is not None:
                self._hold(last, data)
                break
            last += 1
        start, end = number * self._block, min(self.size, last * self._block)
        data = read_remote(self.path, start, end)
        for at in range(number, last):
            block = data[(at - number) * self._block : (at - number + 1) * self._block]
            self._hold(at, block)
            if self._key is not None:
                keep_cached(key_of(*self._key, self._block, at), block)
        self._next = last

    def _cached(self, number: int) -> bytes | None:
        data = None if self._key is None else read_cached(key_of(*self._key, self._block, number))
        whole = min(self.size, (number + 1) * self._block) - number * self._block
        return data if data is not None and len(data) == whole else None

    def _hold(self, number: int, data: bytes) -> None:
        self._held[number] = data
        if len(self._held) > _HELD:
            self._held.popitem(last=False)
