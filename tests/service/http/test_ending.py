"""What connections are told at the end, over real sockets; whole processes that end are in tests/e2e/test_end.py."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from msmlp.service.errors import CUT
from msmlp.service.http.body import SLICE
from msmlp.service.http.ending import Ending
from msmlp.service.http.routes import oip
from msmlp.service.http.watch import Watch
from msmlp.service.oip.model import HEADER_LENGTH
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, serving, wait_until
from tests.service.http.test_protocol import answers
from tests.service.http.test_watch import received

IMAGE = encoded(picture(1.0, size=32))
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
POST = (
    b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
)
UPGRADE = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


class Served:
    """A service, and its end."""

    def __init__(self, weights: Path, **settings: Any) -> None:
        self.backend: FakeBackend = fake_backend()
        self.service = fake_service(weights, lambda: self.backend, **settings)
        self.submissions = Submissions(self.service.engine)

    @contextmanager
    def running(self) -> Iterator["Served"]:
        with serving(self.service) as client:
            self.address = client.base_url.host, client.base_url.port
            wait_until(lambda: self.service.body_budget.make_room is not bool)  # as the app starts
            watch: Any = self.service.body_budget.make_room
            assert isinstance(watch.__self__, Watch)
            self.ending = Ending(watch.__self__, self.service.calls)
            yield self

    def on_its_loop(self, work: Callable[[], Any]) -> None:
        loop, done = self.service.engine._loop, threading.Event()
        assert loop is not None
        loop.call_soon_threadsafe(lambda: (work(), done.set()))
        assert done.wait(PATIENCE_SECONDS)

    def connect(self, sent: bytes) -> socket.socket:
        assert self.address[1] is not None
        connection = socket.create_connection((self.address[0], self.address[1]), timeout=PATIENCE_SECONDS)
        connection.sendall(sent)
        return connection


@pytest.fixture
def served(tiny_weights: Path) -> Iterator[Served]:
    with Served(tiny_weights).running() as made:
        yield made


class Silent:
    """A supervisor that does not answer."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    async def ask(self, what: str, seconds: float = 0) -> Any:
        self.asked.set()
        await asyncio.sleep(2 * PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "line", ["GET /metrics", "GET /v2/models/stats", "GET /v2/models/msmlp/stats", "POST /admin/reload"]
)
def test_what_waits_for_the_supervisor_is_cut_too(tiny_weights: Path, tmp_path: Path, line: str) -> None:
    keys, key = tmp_path / "keys", "the-operators-own-key"
    keys.write_text(key)
    with Served(tiny_weights, admin_keys_file=keys).running() as served:
        silent: Any = Silent()
        served.service.others = silent
        head = f"{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 0\r\n\r\n"
        with served.connect(head.encode()) as connection:
            assert silent.asked.wait(PATIENCE_SECONDS)
            check_cut(served, connection)


def test_tensors_that_are_read_are_cut_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, over = threading.Event(), threading.Event()

    def read(*_: Any) -> None:
        reading.set()
        over.wait(2 * PATIENCE_SECONDS)

    monkeypatch.setattr(oip, "read_inference", read)
    head = b"POST /v2/models/msmlp/infer HTTP/1.1\r\nHost: x\r\n%b: 2\r\nContent-Length: %d\r\n\r\n"
    content = b"{}" + bytes(SLICE)
    try:
        with served.connect(head % (HEADER_LENGTH.encode(), len(content)) + content) as connection:
            assert reading.wait(PATIENCE_SECONDS)
            check_cut(served, connection)
    finally:
        over.set()


def check_cut(served: Served, connection: socket.socket) -> None:
    cut: list[int] = []
    served.on_its_loop(served.ending.close)
    served.on_its_loop(lambda: cut.append(served.ending.cut()))
    [answer] = answers(received(connection))
    assert (cut, answer.status_code) == ([1], 503)
    assert CUT in answer.text


def test_of_requests_that_were_sent_together_the_last_answer_says_that_it_is_the_last(served: Served) -> None:
    with served.backend.gate.held():
        connection = served.connect(POST + GET + POST)
        served.submissions.wait_for(1)
        served.on_its_loop(served.ending.drain)
    with connection:
        found = [(answer.status_code, answer.headers.get("Connection")) for answer in answers(received(connection))]
    assert found == [(200, None), (200, None), (200, "close")]


@pytest.mark.parametrize("request_", [GET, POST, UPGRADE], ids=["GET", "POST", "by the other parser"])
def test_every_answer_is_the_last(served: Served, request_: bytes) -> None:
    served.on_its_loop(served.ending.drain)
    with served.connect(request_) as connection:
        [answer] = answers(received(connection))
    assert (answer.status_code, answer.headers["Connection"]) == (200, "close")


def test_nothing_is_in_flight_on_connections_that_are_silent(served: Served) -> None:
    with served.connect(b"") as silent, served.connect(GET) as idle, served.connect(GET[:10]) as begun:
        assert idle.recv(2**16).startswith(b"HTTP/1.1 200")
        busy: list[bool] = []
        served.on_its_loop(served.ending.close)
        while silent.fileno() >= 0:
            served.on_its_loop(lambda: busy.append(served.ending.busy))
            silent.settimeout(0.02)
            try:
                assert silent.recv(1) == b""
                break
            except TimeoutError:
                continue
        assert idle.recv(1) == b""
        assert all(busy), "half a head is a request"
        begun.sendall(GET[10:])
        [answer] = answers(received(begun))
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
    served.on_its_loop(lambda: busy.append(served.ending.busy))
    assert not busy[-1]
