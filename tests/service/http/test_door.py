"""Overload, over real sockets: refused before the body is read, and probes are answered."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from msmlp.service import service as services
from msmlp.service.engine.door import SMALL_BYTES
from msmlp.service.engine.turns import Turns
from msmlp.service.service import Service
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, knock, serving, wait_until
from tests.service.http.routes.test_errors import check_problem

IMAGE = encoded(picture(1.0, size=32))
PNG = {"Content-Type": "image/png"}
LENGTH = 2**20


def shut(service: Service) -> None:
    """Close the door, whatever the device has to do."""
    door = service.engine.admission.door
    door.shut = math.inf
    vars(door)["reopen"] = lambda wait: None


@contextmanager
def busy(weights: Path) -> Iterator[tuple[Service, FakeBackend, httpx.Client]]:
    """A service that has a request in work and no time for others."""
    backend = fake_backend()
    service = fake_service(weights, lambda: backend, max_wait_ms=2000)
    submissions = Submissions(service.engine)
    with serving(service) as client, backend.gate.held():
        first = threading.Thread(target=client.post, args=("/classify",), kwargs={"content": IMAGE, "headers": PNG})
        first.start()
        submissions.wait_for(1)
        shut(service)
        try:
            yield service, backend, client
        finally:
            backend.gate.open()
            first.join()


def head(path: str, *more: str, method: str = "POST") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/octet-stream", *more)
    return "\r\n".join((*lines, "", "")).encode()


def read_answer(connection: socket.socket) -> httpx.Response:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(2**16)
    top, _, body = received.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = httpx.Headers([line.split(": ", 1) for line in lines])
    while len(body) < int(headers["Content-Length"]):
        body += connection.recv(2**16)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def test_what_the_second_parser_reads_is_refused_too(tiny_weights: Path) -> None:
    with busy(tiny_weights) as (_, _, client):
        address = client.base_url.host, client.base_url.port or 80
        with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head("/classify", f"Content-Length: {LENGTH}", "Connection: Upgrade", "Upgrade: x"))
            check_problem(read_answer(connection), 429, "overloaded")


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("framing", [f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"])
def test_a_request_is_refused_before_its_body_comes_and_the_connection_is_kept(
    tiny_weights: Path, framing: str, method: str
) -> None:
    with busy(tiny_weights) as (service, _, client):
        address = client.base_url.host, client.base_url.port or 80
        with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head("/classify", framing, method=method))
            refusal = read_answer(connection)  # nothing of the body was sent
            document = check_problem(refusal, 429, "overloaded")
            assert "the predicted wait is" in document["detail"]
            assert service.body_budget._held == len(IMAGE), "of the first request alone"
            body = bytes(LENGTH) if "Length" in framing else b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, bytes(LENGTH))
            connection.sendall(body + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).json() == {"live": True}
            assert service.body_budget._held == len(IMAGE)
        for path in ("/livez", "/readyz"):
            assert client.get(path).status_code == 200
        metrics = client.get("/metrics").text
        assert 'msmlp_shed_total{reason="door"} 1.0' in metrics
        assert f"msmlp_body_work {len(IMAGE) + 1024}.0" in metrics


@pytest.mark.parametrize("upgrade", [(), ("Connection: Upgrade", "Upgrade: x")], ids=["httptools", "h11"])
def test_a_body_that_declares_more_than_there_is_memory_for_is_refused_unread(
    tiny_weights: Path, upgrade: tuple[str, ...]
) -> None:
    service = fake_service(tiny_weights, fake_backend, max_bodies_bytes=100_000, max_body_bytes=100_000)
    with serving(service) as client:
        service.body_budget.take(60_000)
        address = client.base_url.host, client.base_url.port or 80
        for length, status in ((40_001, 429), (100_001, 413)):
            with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
                connection.sendall(head("/classify", f"Content-Length: {length}", *upgrade))
                assert read_answer(connection).status_code == status
        assert client.post("/classify", content=IMAGE + bytes(40_000 - len(IMAGE)), headers=PNG).status_code == 200
        assert 'msmlp_shed_total{reason="memory"} 1.0' in client.get("/metrics").text


def test_v2_is_refused_in_its_own_form(tiny_weights: Path) -> None:
    with busy(tiny_weights) as (_, _, client):
        answer = client.post("/v2/models/msmlp/infer", content=b"x", headers={"Content-Type": "application/json"})
        assert answer.status_code == 429
        assert set(answer.json()) == {"error"}
        assert int(answer.headers["Retry-After"]) >= 1


def test_a_large_body_is_looked_at_again_when_it_has_come(tiny_weights: Path) -> None:
    with busy(tiny_weights) as (service, _, client):
        service.engine.admission.door.shut = -math.inf
        content = IMAGE + bytes(2 * SMALL_BYTES)
        address = client.base_url.host, client.base_url.port or 80
        with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head("/classify", f"Content-Length: {len(content)}") + content[:-1])
            wait_until(lambda: service.body_budget._held == len(IMAGE) + len(content) - 1)
            shut(service)
            connection.sendall(content[-1:])
            check_problem(read_answer(connection), 429, "overloaded")


def test_when_all_is_answered_nothing_stays_and_the_door_is_open(tiny_weights: Path) -> None:
    with busy(tiny_weights) as (service, backend, client):
        leaving = knock(client, content=b"x" * 1000, headers=PNG)
        read_answer(leaving)
        leaving.close()
        assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 429
        backend.gate.open()
        door = service.engine.admission.door
        wait_until(lambda: door.work == 0)
        assert service.body_budget._held == service.engine.admission.inflight == 0
        assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200, "with nothing in work, any"
        assert client.post("/classify", content=b"no picture", headers=PNG).status_code == 422
        wait_until(lambda: door.work == 0)  # just after the answer is sent


def test_a_slow_device_is_refused_for_at_the_door_too(tiny_weights: Path) -> None:
    """The device's own prediction refuses a body that was read; those behind it are not read any more."""
    backend = fake_backend()
    backend.fail = lambda stage, pixels: time.sleep(0.05)
    service = fake_service(tiny_weights, lambda: backend, max_wait_ms=300)
    with serving(service) as client:
        statuses: list[int] = []

        def send_on() -> None:
            with httpx.Client(base_url=client.base_url, timeout=PATIENCE_SECONDS) as mine:
                for _ in range(30):
                    files = [("images", ("x", IMAGE))] * 64
                    statuses.append(mine.post("/classify", files=files).status_code)

        threads = [threading.Thread(target=send_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert client.get("/livez").status_code == 200
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        shed = service.metrics.registry.get_sample_value
        assert shed("msmlp_shed_total", {"reason": "door"})
        assert service.engine.admission.door.work == service.body_budget._held == 0


def test_after_a_rush_requests_go_on_in_their_order_some_a_turn() -> None:
    async def main() -> list[list[int]]:
        turns, gone, seen = Turns(3), list[int](), list[list[int]]()

        async def request(number: int) -> None:
            if turns.full():
                await turns.wait()
            gone.append(number)

        tasks = [asyncio.create_task(request(number)) for number in range(8)]
        tasks[4].cancel()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            seen.append(list(gone))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not turns.full(), "later ones find their place free"
        return seen

    seen = asyncio.run(main())
    assert seen[-1] == [0, 1, 2, 3, 5, 6, 7]
    assert max(len(after) - len(before) for before, after in pairwise([[], *seen])) == 3


def test_after_the_loop_stood_still_the_process_is_not_called_alive(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "STILL_SECONDS", 0.3)
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        wait_until(lambda: client.get("/livez").status_code == 200)  # a busy machine may stop for as long
        assert service.engine._loop is not None
        begun = threading.Event()
        service.engine._loop.call_soon_threadsafe(lambda: (begun.set(), time.sleep(1.0)))
        assert begun.wait(PATIENCE_SECONDS)
        document = check_problem(client.get("/livez"), 503, "engine_down")
        assert document["detail"] == "the event loop stood still for 1 s"
        v2 = client.get("/v2/health/live")
        assert (v2.status_code, v2.json()) == (503, {"error": "the event loop stood still for 1 s"})
        wait_until(lambda: client.get("/livez").status_code == 200)
