"""Paths that are URLs, and what is asked of the servers behind them: a bounded number of times, with clear errors."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import posixpath
import random
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import IO, Any, TypeVar

import fsspec

log = logging.getLogger(__name__)
T = TypeVar("T")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://+")
_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # what pathlib leaves of it
_ATTEMPTS = "ICVE_REMOTE_ATTEMPTS"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between attempts, twice as many each time
_KEPT_SECONDS = 60.0  # how long what a server said of a file is believed
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "modified", "created")
_GUESSED = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
OWN_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # errors of this machine, not of a server
# Attempts are counted here alone. A reader that hears nothing for so many seconds asks anew.
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 30}}


class RemoteError(ConnectionError):
    """A server that does not give what it has, in one sentence: no fault of the file, so that nothing goes on."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands its whole traceback on as the message.
        super().__init__(message.rpartition("RemoteError: ")[2].strip())


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, ``file://`` among them."""
    return _matched(path) is not None


def _matched(path: str | os.PathLike) -> re.Match | None:
    return (_URL_AS_PATH if isinstance(path, Path) else _URL).match(os.fspath(path))


def refuse_url(option: str, path: str | os.PathLike) -> None:
    """Raise ValueError for the URL of an option that takes a local folder."""
    if is_url(path):
        raise ValueError(f"{option} is {path}, a URL: results are written to local folders; name one.")


def as_path(path: str | os.PathLike) -> Path:
    """A path, which is a :class:`RemotePath` where it is the URL of another protocol than ``file://``.

    Raises:
        ValueError: the URL holds a password, or names no bucket or host.
    """
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    if (match := _matched(path)) is None:
        return Path(path)
    rest = text[match.end() :].lstrip("/")
    if match[1] == "file":
        return Path(f"/{rest}")
    place = rest.partition("/")[0]
    if ":" in place.partition("@")[0] and "@" in place:
        raise ValueError(
            f"The URL {match[1]}://…@{place.rpartition('@')[2]} holds a password: give credentials in the environment "
            "(docs/remote_data.md) and leave them out of the URL."
        )
    if not place:
        raise ValueError(f"The URL {text} names no bucket or host: write it as in s3://bucket/folder.")
    return RemotePath(f"{match[1]}:/{posixpath.normpath('/' + rest)}")


class RemotePath(PosixPath):
    """A file or folder behind a URL: a path like others, whose questions go to the server.

    ``str`` gives the URL. Folders need not be made, and there are no links.
    """

    def __str__(self) -> str:
        first, *rest = self.parts
        return f"{first}//{'/'.join(rest)}"

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __reduce__(self) -> tuple:
        return as_path, (str(self),)

    @property
    def protocol(self) -> str:
        """As in ``s3``."""
        return self.parts[0].rstrip(":")

    def as_posix(self) -> str:
        return str(self)

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def expanduser(self) -> RemotePath:
        return self

    def relative_to(self, other: str | os.PathLike, *_: Any) -> Path:  # type: ignore[override]
        parts = as_path(other).parts
        if self.parts[: len(parts)] != parts:
            raise ValueError(f"{self} does not lie in {other}")
        return Path(*self.parts[len(parts) :])

    def is_symlink(self) -> bool:
        return False

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: folders come with their files."""

    def details(self) -> dict[str, Any]:
        """What the server says of the file or folder. Raises FileNotFoundError, RemoteError."""
        url = str(self)
        return request(self, lambda files: files.info(url))

    def exists(self, **_: Any) -> bool:
        try:
            self.details()
        except FileNotFoundError:
            return False
        return True

    def is_file(self, **_: Any) -> bool:
        return self._is("file")

    def is_dir(self, **_: Any) -> bool:
        return self._is("directory")

    def _is(self, kind: str) -> bool:
        try:
            return self.details()["type"] == kind
        except FileNotFoundError:
            return False

    def listing(self) -> dict[str, dict[str, Any]]:
        """What the server says of all files below a folder, by name relative to it, in order.

        Raises:
            FileNotFoundError: there are none.
            RemoteError: the server does not say.
        """
        url = str(self)
        start, found = request(self, lambda files: (files._strip_protocol(url), files.find(url, detail=True)))
        start = f"{start.rstrip('/')}/"
        below = {name.removeprefix(start): found[name] for name in sorted(found) if name.startswith(start)}
        if not below:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
        return {name: details for name, details in below.items() if name and not name.endswith("/")}

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Files that lie right in the folder."""
        yield from (self / name for name in self.listing() if "/" not in name)

    def glob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Files below the folder whose relative name fits, component by component."""
        depth = pattern.count("/")
        try:
            names = self.listing()
        except FileNotFoundError:
            return iter(())
        return (self / name for name in names if name.count("/") == depth and Path(name).match(pattern))

    def read_bytes(self) -> bytes:
        url = str(self)
        return request(self, lambda files: files.cat_file(url))

    def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *_: Any, **__: Any) -> IO:  # type: ignore[override]
        """The whole file in memory, to read: large ones are for :func:`icve.runtime.storage.files.open_file`."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{self} can only be read.")
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding or "utf-8")

    @contextmanager
    def written_whole(self) -> Iterator[Path]:
        """A local file to write; what it holds at the end of the block is uploaded, whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="icve-upload-") as folder:
            file = Path(folder, self.name)
            yield file
            self.upload(file)

    def upload(self, file: Path) -> None:
        """Put a local file there, whole or not at all."""
        url = str(self)
        request(self, lambda files: files.put_file(str(file), url))
        forget(self)

    def unlink(self, missing_ok: bool = False) -> None:
        url = str(self)
        try:
            request(self, lambda files: files.rm_file(url))
        except FileNotFoundError:
            if not missing_ok:
                raise


def request(path: RemotePath, ask: Callable[[Any], T]) -> T:
    """Ask a server, again where it does not answer as it should: 6 times, or as ``ICVE_REMOTE_ATTEMPTS`` says.

    Args:
        path: named in errors; its protocol chooses the file system.
        ask: called with an fsspec file system of this process.

    Raises:
        FileNotFoundError: there is nothing under the path.
        RemoteError: the server cannot be reached, refuses, or does not answer as it should; or nothing is installed
            that speaks the protocol.
        OSError: a local disk takes nothing more.
    """
    attempts, began = _attempts(), time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return ask(_file_system(path.protocol, os.getpid()))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        except PermissionError as error:
            raise RemoteError(
                f"{path} is refused to you ({_brief(error)}): correct the credentials in the environment, or the "
                "rights they have, also the one to list the bucket."
            ) from error
        except ImportError as error:
            raise RemoteError(
                f"{path} needs a package that is not installed ({_brief(error)}): for s3://, pip install 'icve[s3]'."
            ) from error
        except (ValueError, TypeError, NotImplementedError) as error:
            raise RemoteError(f"{path} cannot be asked for ({_brief(error)}): correct the URL.") from error
        except Exception as error:  # each protocol has its own for what may be gone the next time
            if isinstance(error, OSError) and error.errno in OWN_DISK:
                raise
            if type(error).__name__ in _GUESSED:
                raise RemoteError(
                    f"{path} needs credentials, and there are none ({_brief(error)}): set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (docs/remote_data.md)."
                ) from error
            if attempt == attempts:
                seconds = time.monotonic() - began
                raise RemoteError(
                    f"{path} could not be had in {attempts} attempts over {seconds:.0f} s ({_brief(error)}): see that "
                    f"its server answers, then give the same command again; {_ATTEMPTS}=N asks N times."
                ) from error
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1))
            wait *= random.SystemRandom().uniform(0.5, 1.0)  # not all processes at the same time
            log.info("%s: attempt %d of %d failed (%s).", path, attempt, attempts, _brief(error))
            time.sleep(wait)
    raise AssertionError("there is at least one attempt")


def version_of(info: dict[str, Any]) -> str | None:
    """What tells one version of a remote file from another: its entity tag, else its time; None where neither is."""
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), None)


_said: dict[str, tuple[float, Any]] = {}


def remembered(path: RemotePath, ask: Callable[[], T]) -> T:
    """What ``ask`` finds out about a path, from memory where that is less than a minute old."""
    now, url = time.monotonic(), str(path)
    if url not in _said or now - _said[url][0] > _KEPT_SECONDS:
        if len(_said) > 100_000:
            _said.clear()
        _said[url] = (now, ask())
    return _said[url][1]


def forget(path: RemotePath | None = None) -> None:
    """Ask anew about a path, or about all."""
    if path is None:
        _said.clear()
    else:
        _said.pop(str(path), None)


# File systems are not for the children of the process that made them: their threads stay behind.
@functools.lru_cache(maxsize=64)
def _file_system(protocol: str, process: int) -> Any:
    if protocol not in ("s3", "s3a"):
        return fsspec.filesystem(protocol, use_listings_cache=False)
    files = fsspec.filesystem(protocol, use_listings_cache=False, **_S3)
    files.retries = 1
    return files


def _attempts() -> int:
    text = os.environ.get(_ATTEMPTS, "6")
    if not (text.isdecimal() and int(text)):
        raise ValueError(f"{_ATTEMPTS} must be a whole number of at least 1, not {text!r}.")
    return int(text)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    return text or type(error).__name__
