"""An S3 server of moto's on a free loopback port, which counts what is asked of it and fails on demand."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

_REFUSED = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist</Message></Error>"
_SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class S3Server:
    """The server, in a thread of this process.

    Attributes:
        log: (method, path, range header) of every request.
        failures: what the next requests get, in turn: "503", "403", or "cut" for half of the body.
        failing: what all requests get.
        refused: a part of the paths that get "503".
        sent: bytes of bodies sent.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.log: list[tuple[str, str, str]] = []
        self.failures: list[str] = []
        self.failing: str | None = None
        self.refused: str | None = None
        self.sent = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ, start_response):
        self.log.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        refused = "503" if self.refused and self.refused in environ["PATH_INFO"] else None
        failure = self.failing or refused or (self.failures.pop(0) if self.failures else None)
        if failure in ("503", "403"):
            body = _SLOW if failure == "503" else _REFUSED
            start_response(
                "503 Slow Down" if failure == "503" else "403 Forbidden",
                [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))],
            )
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]  # clients take a body there for damage
        body = b"".join(self._app(environ, start_response))
        self.sent += len(body)
        return [body[: len(body) // 2] if failure == "cut" else body]

    def reset(self) -> None:
        """Forget what was asked, and fail no more."""
        self.log.clear()
        self.failures.clear()
        self.failing, self.refused, self.sent = None, None, 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


def use(server: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the environment to a server, and remote reading to a fresh cache and to short waits."""
    from icve.runtime.storage import block_cache, remote_path

    forget_servers()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("ICVE_CACHE", str(cache))
    monkeypatch.setattr(remote_path, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(block_cache, "_full", False)


def forget_servers() -> None:
    """Let the next request find its server anew; a process otherwise stays with its first one."""
    from icve.runtime.storage import remote_path

    remote_path._file_system.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    remote_path.forget()


def upload(folder: Path, url: str) -> str:
    """Put a folder's files behind a URL, which is returned."""
    from icve.runtime.storage.remote_path import _file_system

    files = _file_system(url.partition(":")[0], os.getpid())
    bucket = url.partition("://")[2].partition("/")[0]
    if url.startswith("s3") and not files.exists(bucket):
        files.mkdir(bucket)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files.put_file(str(file), f"{url}/{file.relative_to(folder).as_posix()}")
    return url
