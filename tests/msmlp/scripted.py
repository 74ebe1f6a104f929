"""A small HTTP server that answers as a test has written down, and remembers what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.fakes import PATIENCE_SECONDS

ANSWER: dict[str, Any] = {
    "request_id": "theirs",
    "model": {"name": "m", "version": "1"},
    "operating_point": {"name": "balanced", "source": "default", "thresholds": [], "expected_accuracy": 0.5},
    "results": [{"index": 0, "label": "cat", "top_k": [], "stages": [{"stage": 1, "score": 0.5}]}],
    "latency_ms": 1.0,
}


@dataclass(frozen=True)
class Reply:
    """One response; a `body` that is no text is sent as JSON. `cut`: fewer bytes come than were promised."""

    status: int = 200
    body: Any = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


DROPPED, SILENT = Reply(status=-1), Reply(status=-2)
"""The connection is closed without a response; nothing is answered while the test runs."""
TRICKLE = Reply(body=" " * 500)
"""A hundred bytes a second, until the client has gone."""


def refusal(status: int, code: str = "overloaded", retry_after: str | None = None) -> Reply:
    """A problem+json document."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Reply(status, {"status": status, "code": code, "detail": "not now", "request_id": "theirs"}, headers)


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Scripted:
    """Where the server is, and what it was asked."""

    url: str
    asked: list[Asked]


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    """A server that gives these replies in turn, the last of them for ever."""
    asked: list[Asked] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            reply = replies[min(len(asked), len(replies)) - 1]
            if reply is SILENT:
                ended.wait(PATIENCE_SECONDS)
            if reply.status < 0:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content) + reply.cut))
            self.end_headers()
            if reply is TRICKLE:
                self._trickle(reply.content)
            else:
                self.wfile.write(reply.content)
            self.close_connection = reply.cut

        def _trickle(self, content: bytes) -> None:
            with suppress(OSError):
                for number in range(len(content)):
                    self.wfile.write(content[number : number + 1])
                    ended.wait(0.01)
            self.close_connection = True

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Scripted(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
