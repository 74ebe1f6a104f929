"""What connections are told at the end, over real sockets; whole processes that end are in tests/e2e/test_end.py."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from msmlp.service.http.ending import Ending
from msmlp.service.http.watch import Watch
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, serving
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

    def __init__(self, weights: Path) -> None:
        self.backend: FakeBackend = fake_backend()
        self.service = fake_service(weights, lambda: self.backend)
        self.submissions = Submissions(self.service.engine)

    @contextmanager
    def running(self) -> Iterator["Served"]:
        with serving(self.service) as client:
            self.address = client.base_url.host, client.base_url.port
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
