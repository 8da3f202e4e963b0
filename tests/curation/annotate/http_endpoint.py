"""A real endpoint on this machine, which answers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from icve.curation.vision_language import Question

Request = dict[str, Any]


@dataclass
class Reply:
    """What the endpoint sends: JSON or raw text, after a delay; or nothing at all where it drops the connection."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    content_type: str = "application/json"


def completion(
    text: str | None, tokens: tuple[int, int] | None = (100, 10), end: str = "stop", **message: Any
) -> Reply:
    """A reply in the form of OpenAI's chat completions."""
    body: dict[str, Any] = {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [
            {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text, **message}},
        ],
    }
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return Reply(body)


class Endpoint:
    """Counts and records what it is asked (``requests``, with the times they came at); ``reply`` decides the answer."""

    def __init__(self) -> None:
        self.reply: Callable[[Request, int], Reply] = lambda request, number: completion("Add a red ball.")
        self.models: Reply = Reply({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.together = self.most_together = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint.keys.append(self.headers.get("Authorization"))
                self._send(endpoint.models)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(request)
                    endpoint.times.append(time.monotonic())
                    endpoint.keys.append(self.headers.get("Authorization"))
                    endpoint.together += 1
                    endpoint.most_together = max(endpoint.most_together, endpoint.together)
                try:
                    reply = endpoint.reply(request, number)
                    time.sleep(reply.delay)
                finally:
                    with endpoint._lock:
                        endpoint.together -= 1
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                if reply.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", reply.content_type)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content.encode())))
                    self.end_headers()
                    self.wfile.write(content.encode())
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @staticmethod
    def prompt(request: Request) -> str:
        """The text of a request's question."""
        return next(part["text"] for part in request["messages"][0]["content"] if part["type"] == "text")


def questions(count: int, check=None) -> list[Question]:
    """Numbered questions, which any words answer."""
    check = check or (lambda text: None if text.strip() else "The answer is empty.")
    return [Question(f"Question {number}.", (), check) for number in range(count)]


def echo(request: Request, _: int) -> Reply:
    """An answer that names its question."""
    return completion("Answer to " + Endpoint.prompt(request))
