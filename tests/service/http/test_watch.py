"""How long a connection may be silent, slow or unanswered, and how many may be open: over real sockets."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.service.http import watch
from msmlp.service.http.watch import RATE, Phase, Seen
from msmlp.service.service import Service
from msmlp.service.telemetry.metrics import PHASES
from tests.certificates import issue
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import connect, encoded, fake_backend, fake_service, knock, serving, wait_until
from tests.service.http.test_protocol import answers

IMAGE = encoded(picture(1.0, size=32))
PNG = {"Content-Type": "image/png"}
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"
SHORT = 0.4
"""Seconds of a limit that is to be reached; all others are far away, or none."""
NO_LIMITS = dict.fromkeys(("head_seconds", "keep_alive_seconds", "body_seconds", "request_seconds"), 0)


class Running:
    """A service on a fake backend, and what it counts."""

    def __init__(self, service: Service, backend: FakeBackend, client: httpx.Client) -> None:
        self.service, self.backend, self.client = service, backend, client

    def counted(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def timeouts(self) -> dict[str, float]:
        """By phase, those there were."""
        found = {phase: self.counted("msmlp_timeouts_total", phase=phase) for phase in PHASES}
        return {phase: number for phase, number in found.items() if number}

    def connect(self, first: bytes = b"") -> socket.socket:
        connection = connect(self.client)
        connection.sendall(first)
        return connection

    def until_closed(self, first: bytes, drip: bytes = b"") -> list[httpx.Response]:
        """What a client is answered that sends `first`, and then `drip` again and again, until the end."""
        with self.connect(first) as connection:
            over = threading.Event()

            def dripping() -> None:
                while not over.wait(0.02):
                    try:
                        connection.sendall(drip)
                    except OSError:
                        return

            with ThreadPoolExecutor(1) as pool:
                if drip:
                    pool.submit(dripping)
                try:
                    return list(answers(received(connection)))
                finally:
                    over.set()


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, however abruptly."""
    found = b""
    try:
        while more := connection.recv(2**16):
            found += more
    except ConnectionResetError:
        pass
    return found


Serve = Callable[..., Any]


@pytest.fixture(params=["http", "https"])
def serve(tiny_weights: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Serve:
    @contextmanager
    def running(**settings: Any) -> Iterator[Running]:
        backend, secure = fake_backend(), issue(tmp_path).settings if request.param == "https" else {}
        service = fake_service(tiny_weights, lambda: backend, **NO_LIMITS | secure | settings)
        with serving(service) as client:
            yield Running(service, backend, client)

    return running


def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    with serve(head_seconds=SHORT) as running:
        assert running.until_closed(b"") == []
        assert running.timeouts() == {"head": 1}


@pytest.mark.parametrize("drip", [b"", b"X-a: b\r\n"])
def test_a_head_that_does_not_end_is_408(serve: Serve, drip: bytes) -> None:
    with serve(head_seconds=SHORT) as running:
        (answer,) = running.until_closed(POST % 9, drip)
        assert (answer.status_code, answer.json()["code"]) == (408, "head_timeout")
        assert answer.headers["Connection"] == "close"
        assert running.timeouts() == {"head": 1}
        assert running.counted("msmlp_requests_total", route="other", status="408") == 1


def test_the_head_of_a_later_request_has_its_time_too(serve: Serve) -> None:
    with serve(head_seconds=SHORT) as running:
        first, second = running.until_closed(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez")
        assert (first.status_code, second.status_code) == (200, 408)


CHUNKED = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"  # read by h11


@pytest.mark.parametrize("upgrade", [b"", UPGRADE], ids=["httptools", "h11"])
@pytest.mark.parametrize(
    ("head", "body", "drip"),
    [
        (POST % 100_000, b"", b""),
        (POST % 100_000, b"abc", b""),
        (POST % 100_000, b"x" * 90_000, b""),
        (POST % 100_000, b"", b"x"),
        (CHUNKED, b"3\r\nabc\r\n", b"1\r\nx\r\n"),
    ],
)
def test_a_body_that_stalls_or_drips_is_408_and_gives_its_bytes_back(
    serve: Serve, head: bytes, body: bytes, drip: bytes, upgrade: bytes
) -> None:
    with serve(body_seconds=SHORT, max_bodies_bytes=100_000) as running:
        (answer,) = running.until_closed(head + upgrade + b"\r\n" + body, drip)
        assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")
        assert answer.headers["Connection"] == "close"
        assert running.timeouts() == {"body": 1}
        fits = running.client.post("/classify", content=IMAGE + bytes(100_000 - len(IMAGE)), headers=PNG)
        assert fits.status_code == 200


def test_who_still_sends_a_body_that_is_given_up_is_not_reset(tiny_weights: Path) -> None:
    """Clients that send the rest before they look at the answer would never see it."""
    service = fake_service(tiny_weights, fake_backend, **NO_LIMITS | {"body_seconds": SHORT})
    with (
        serving(service) as client,
        Running(service, fake_backend(), client).connect(POST % 50_000 + b"\r\n") as sender,
    ):
        assert select.select([sender], [], [], PATIENCE_SECONDS)[0], "the answer is there"
        for _ in range(10):
            sender.sendall(bytes(1000))
            time.sleep(0.02)
        sender.shutdown(socket.SHUT_WR)
        (answer,) = answers(b"".join(iter(lambda: sender.recv(2**16), b"")))
        assert answer.status_code == 408


def test_held_bodies_do_not_keep_others_out_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STALL_SECONDS", 60)  # only the limit below may end them
    with serve(body_seconds=2, max_bodies_bytes=100_000) as running, ExitStack() as held:
        first = POST % 50_000 + b"\r\n" + bytes(49_999)
        holders = [held.enter_context(running.connect(first)) for _ in range(2)]

        def status() -> int:
            return running.client.post("/classify", content=IMAGE, headers=PNG).status_code

        wait_until(lambda: status() == 429)
        wait_until(lambda: status() == 200)
        assert [received(each)[:12] for each in holders] == [b"HTTP/1.1 408"] * 2


def test_holders_that_come_back_at_once_do_not_keep_others_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(watch, "STALL_SECONDS", 0.1)
    with serve(max_bodies_bytes=100_000, body_seconds=2) as running:
        over, ended, budget = threading.Event(), list[bytes](), running.service.body_budget

        def hold() -> None:
            while not over.is_set():
                with running.connect(POST % 50_000 + b"\r\n" + bytes(49_990)) as connection:
                    ended.append(received(connection)[:12])

        def status() -> int:
            return running.client.post("/classify", content=IMAGE, headers=PNG).status_code

        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(hold)
            try:
                wait_until(lambda: budget.free < len(IMAGE))
                statuses = []
                for _ in range(12):
                    statuses.append(status())
                    over.wait(0.25)
            finally:
                over.set()
        assert statuses.count(200) >= 6
        assert b"HTTP/1.1 408" in ended
        assert running.timeouts()["body"] >= ended.count(b"HTTP/1.1 408")


def test_a_body_that_moves_is_not_ended_for_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SWEEP_SECONDS", 0.02)
    with serve(max_bodies_bytes=100_000) as running:
        running.service.body_budget.take(50_000)
        with running.connect(POST % 49_990 + b"\r\n" + bytes(49_980)) as connection:
            wait_until(lambda: running.service.body_budget.free == 20)
            assert running.client.post("/classify", content=IMAGE, headers=PNG).status_code == 429
            connection.sendall(bytes(10))
            assert connection.recv(12) == b"HTTP/1.1 422"
        assert running.timeouts() == {}


def test_of_stalled_bodies_the_longest_still_is_ended_first(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(watch, "STALL_SECONDS", 0.1)
    with serve(max_bodies_bytes=100_000) as running:
        budget, held = running.service.body_budget, []
        for number in range(2):
            held.append(running.connect(POST % 50_000 + b"\r\n" + bytes(49_990)))
            wait_until(lambda: budget.free == 100_000 - 49_990 * (number + 1))  # noqa: B023
            threading.Event().wait(0.2)
        wait_until(lambda: running.client.post("/classify", content=IMAGE, headers=PNG).status_code == 200)
        (answer,) = answers(received(held[0]))
        assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")
        wait_until(lambda: budget.free == 100_000 - 49_990)
        held[1].sendall(bytes(10))
        assert held[1].recv(12) == b"HTTP/1.1 422"
        for each in held:
            each.close()


def test_under_v2_it_has_that_protocols_form(serve: Serve) -> None:
    with serve(body_seconds=SHORT, head_seconds=SHORT) as running:
        head = b"POST /v2/models/msmlp/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        for first in (head, head + b"\r\n"):
            (answer,) = running.until_closed(first)
            assert answer.status_code == 408
            assert list(answer.json()) == ["error"]


def test_a_body_that_comes_fast_enough_may_take_as_long_as_it_needs(serve: Serve) -> None:
    size = 8 * RATE
    with serve(body_seconds=1) as running, running.connect(POST % size + b"\r\n") as connection:
        sent = threading.Event()
        for _ in range(20):  # over more than twice the limit
            connection.sendall(bytes(size // 20))
            sent.wait(0.12)
        assert connection.recv(12) == b"HTTP/1.1 422"
        assert running.timeouts() == {}


def test_a_body_that_has_come_is_not_late_while_the_device_is_busy(serve: Serve) -> None:
    with (
        serve(body_seconds=0.5, request_seconds=1.5) as running,
        running.backend.gate.held(),
        knock(running.client, content=IMAGE, headers=PNG) as connection,  # complete, and waiting for the device
    ):
        assert connection.recv(12) == b"HTTP/1.1 503"
        assert running.timeouts() == {"request": 1}


def test_an_idle_connection_is_closed_after_its_time_and_not_before(serve: Serve) -> None:
    with serve(keep_alive_seconds=1) as running, running.connect() as connection:
        busy = threading.Event()
        for _ in range(12):  # longer than the limit, but never idle for as long
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
            busy.wait(0.12)
        assert running.timeouts() == {}
        assert received(connection) == b""
        assert running.timeouts()["idle"] >= 1  # that of the client here may be one more


def test_a_request_that_has_no_answer_in_time_is_503_and_its_connection_closed(serve: Serve) -> None:
    with serve(request_seconds=SHORT) as running, running.backend.gate.held():
        with knock(running.client, content=IMAGE, headers=PNG) as connection:
            (answer,) = answers(received(connection))
        assert (answer.status_code, answer.json()["code"]) == (503, "unanswered")
        assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
        assert running.timeouts() == {"request": 1}
        running.backend.gate.open()
        wait_until(lambda: running.service.engine.admission.inflight == 0)


def test_what_waits_behind_such_a_request_ends_with_it(serve: Serve) -> None:
    with serve(request_seconds=SHORT) as running, running.backend.gate.held():
        post = POST % len(IMAGE) + b"\r\n" + IMAGE
        assert [answer.status_code for answer in running.until_closed(post * 3)] == [503]


def test_a_whole_request_has_its_time_where_its_body_never_ends(serve: Serve) -> None:
    with serve(request_seconds=SHORT) as running:
        (answer,) = running.until_closed(POST % 100_000 + b"\r\n", b"x")
        assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")
        assert running.timeouts() == {"request": 1}


def test_a_stream_that_takes_too_long_is_cut(serve: Serve) -> None:
    with serve(request_seconds=SHORT) as running:
        two = encoded(picture(0.2, 1.0, size=32))
        gate = threading.Event()
        running.backend.fail = lambda stage, _: gate.wait(PATIENCE_SECONDS) and None if stage else None
        query = "?stream=true&thresholds=0.5,0.5"
        request = POST.replace(b"/classify", b"/classify" + query.encode()) % len(two) + b"\r\n" + two
        with running.connect(request) as connection:
            text = received(connection)
        gate.set()
        assert b"goes_on" in text
        assert not text.endswith(b"0\r\n\r\n")  # nobody takes it for a whole answer
        assert running.timeouts() == {"request": 1}


@pytest.mark.parametrize("target", [b"/openapi.json", b"/admin"], ids=["answers", "refusals"])
def test_a_client_that_does_not_read_is_cut(serve: Serve, target: bytes) -> None:
    with serve(body_seconds=SHORT) as running, running.connect() as connection:
        connection.settimeout(0.1)
        ask = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target * 20

        def cut() -> bool:
            try:
                connection.sendall(ask)
            except TimeoutError:
                pass
            except OSError:
                return True
            return bool(running.timeouts())

        wait_until(cut)
        wait_until(lambda: bool(running.timeouts()))
        assert running.timeouts() == {"answer": 1}
        wait_until(lambda: running.counted("msmlp_connections") <= 1)


def test_zero_is_no_limit(serve: Serve) -> None:
    with serve(body_seconds=SHORT) as running, running.connect() as silent, running.connect(b"GET /liv") as half:
        assert running.until_closed(POST % 9 + b"\r\n")[0].status_code == 408
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        half.sendall(b"ez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent.recv(12) == half.recv(12) == b"HTTP/1.1 200"


# How many.


def test_connections_beyond_the_most_are_refused_and_counted(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with serve(max_connections=2) as running, running.backend.gate.held():
        running.client.close()
        busy = [running.connect(POST % len(IMAGE) + b"\r\n" + IMAGE) for _ in range(2)]
        wait_until(lambda: running.counted("msmlp_connections") == 2 and running.service.engine.admission.inflight == 2)
        for _ in range(3):
            with running.connect() as connection:
                (answer,) = answers(received(connection))
                assert (answer.status_code, answer.json()["code"]) == (503, "too_many_connections")
        assert running.counted("msmlp_connections_refused_total") == 3
        assert running.counted("msmlp_capacity_connections") == 2
        assert len([each for each in caplog.messages if "--max-connections" in each]) == 1
        running.backend.gate.open()
        assert [each.recv(12) for each in busy] == [b"HTTP/1.1 200"] * 2
        for each in busy:
            each.close()
        with running.connect(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_the_longest_silent_connection_makes_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SWEEP_SECONDS", 0.05)
    with serve(max_connections=3) as running:
        running.client.close()
        wait_until(lambda: running.counted("msmlp_connections") == 0)
        silent = []
        for number in range(3):
            silent.append(running.connect())
            wait_until(lambda: running.counted("msmlp_connections") == number + 1)  # noqa: B023
        with running.connect(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            assert connection.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
        wait_until(lambda: answered(running) == 200)  # once a sweep has seen who is silent
        assert received(silent[0]) == b""
        assert running.counted("msmlp_connections_refused_total") >= 1
        for each in silent:
            each.close()


def test_one_that_lingers_makes_room_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 60)
    with serve(max_connections=1) as running:
        running.client.close()
        wait_until(lambda: running.counted("msmlp_connections") == 0)
        with running.connect(b"GET / HTTP/1.1\r\n\r\n") as refused:  # it has no Host
            assert refused.recv(12) == b"HTTP/1.1 400"
            wait_until(lambda: answered(running) == 200)
            try:
                received(refused)
                wait_until(lambda: not sends(refused))
            except OSError:
                pass  # reset


def sends(connection: socket.socket) -> bool:
    """Whether the other side still takes what is sent."""
    try:
        connection.sendall(b"x")
    except OSError:
        return False
    return True


def answered(running: Running) -> int:
    with running.connect(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        return next(iter(answers(received(connection)))).status_code


# What a sweep makes of what it sees.


def test_every_phase_is_counted_from_the_start() -> None:
    assert sorted(Phase) == sorted(PHASES)


@pytest.mark.parametrize(
    ("second", "crawls"),
    [
        (lambda at: 0, True),
        (lambda at: int((RATE - 1) * at), True),
        (lambda at: int(RATE * at), False),
        (lambda at: 10**9, True),  # much at once, and then nothing
        (lambda at: RATE * 10 * int(at / 10), False),  # in bursts
    ],
)
def test_a_rate_is_kept_over_any_window(second: Callable[[float], int], crawls: bool) -> None:
    seen = Seen()
    assert any(seen.crawls(second(0.5 * step), 0.5 * step, 10) for step in range(200)) == crawls


def test_nothing_is_said_before_a_window_is_over() -> None:
    seen = Seen()
    assert not any(seen.crawls(0, 0.5 * step, 10) for step in range(20))
    assert seen.crawls(0, 10, 10)
    assert not Seen().crawls(0, 100, 0)


def test_another_request_in_the_same_phase_begins_anew() -> None:
    seen, one, other = Seen(), object(), object()
    seen.update((one, 0), Phase.REQUEST, 1.0)
    seen.update((one, 0), Phase.REQUEST, 2.0)
    assert (seen.since, seen.turned) == (1.0, 1.0)
    seen.update((one, 0), Phase.ANSWER, 3.0)
    assert (seen.since, seen.turned) == (3.0, 1.0)
    seen.update((other, 0), Phase.ANSWER, 4.0)
    assert (seen.since, seen.turned) == (4.0, 4.0)
