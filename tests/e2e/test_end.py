"""How `msmlp serve` ends: on a signal, with requests in flight that are answered, or that never will be."""

import http.client
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from msmlp.service.http.front_end import LAST_SECONDS
from tests.e2e.test_frontends import alive, children, front_ends
from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import Served, msmlp_serve, started
from tests.servers import encoded, wait_until
from tests.service.frontends import hanging
from tests.service.grpc.conftest import Caller, infer_request
from tests.service.grpc.test_server import silent_call
from tests.service.http.routes.test_decoding import black
from tests.service.http.test_protocol import answers
from tests.service.http.test_watch import received

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

IMAGE = encoded(picture(1.0, size=32))
ID = "the-end"
HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\nX-Request-ID: {id}\r\n\r\n"
CUT = "the service is shutting down, and had no more time for this request"


def shown(label: int) -> bytes:
    return encoded(picture(1.0, label=label, size=32))


@contextmanager
def serving(weights: Path, frontends: int, engine: str, **settings: Any) -> Iterator[Served]:
    """Over stages that a picture can hang; without a drain unless `settings` say so."""
    words = [f"{name}={value}" for name, value in {"silence": 100, **settings}.items()]
    with started(sys.executable, hanging.__file__, str(weights), str(frontends), engine, *words) as served:
        served.wait_until_ready(frontends)
        yield served


def connect(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


def asked(body: bytes, path: str = "/classify", kind: str = "image/png") -> bytes:
    return HEAD.format(path=path, kind=kind, size=len(body), id=ID).encode() + body


def in_flight(served: Served) -> float:
    return served.metric("msmlp_inflight_images")


def check_cut(answer: httpx.Response, request_id: str = ID) -> None:
    """A 503 in the form of all errors, with the id of the request."""
    assert (answer.status_code, answer.headers["Connection"]) == (503, "close")
    assert answer.headers["X-Request-ID"] == request_id
    assert int(answer.headers["Retry-After"]) > 0
    if answer.headers["Content-Type"] == "application/problem+json":
        document = answer.json()
        assert (document["code"], document["request_id"], document["detail"]) == ("draining", request_id, CUT)
    else:
        assert answer.json() == {"error": CUT}


def check_end(served: Served, status: int, cut: int = 0, killed: int = 0) -> None:
    """It has ended as a whole, and says what it has not answered."""
    assert served.end() == status, served.log
    assert "Traceback" not in served.log
    said = served.log.splitlines()[-1]
    if status:
        lost = f"({cut} cut, {killed} front ends killed)"
        assert said == f"msmlp: stopped before every request was answered {lost}"
    else:
        assert said.endswith("stopped; every request was answered")


# What has time is answered.


@pytest.mark.parametrize(("frontends", "engine"), [(1, "inline"), (2, "process")])
def test_what_is_in_flight_is_answered_first(tiny_weights: Path, frontends: int, engine: str) -> None:
    with serving(tiny_weights, frontends, engine) as served, connect(served) as connection, connect(served) as idle:
        started = children(served.process.pid)
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 OK" in idle.recv(2**16)
        connection.sendall(asked(shown(hanging.SLOW)))
        if engine == "process":
            wait_until(lambda: in_flight(served) == 1)
        else:
            time.sleep(0.2)  # while it runs, nobody can be asked
        served.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b"", "an idle connection is closed"
        [answer] = answers(received(connection))
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        check_end(served, 0)
        wait_until(lambda: not alive(started))


def test_while_it_drains_it_is_not_ready_and_answers_on_kept_and_new_connections(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights, "--frontends", "2", "--grpc-port", "0", "--drain-seconds", "1000") as served:
        served.wait_until_ready(2)
        wait_until(lambda: served.log.count("serving gRPC") == 2)
        host, port = served.url.removeprefix("http://").split(":")
        kept = [http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS) for _ in range(4)]
        assert {ask(each)[0] for each in kept} == {200}
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 503)
        refused = httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS).json()
        assert (refused["code"], refused["detail"]) == ("draining", "the service is shutting down")
        assert httpx.get(f"{served.url}/v2/health/ready", timeout=PATIENCE_SECONDS).status_code == 503
        assert httpx.get(f"{served.url}/livez", timeout=PATIENCE_SECONDS).status_code == 200
        for each in kept:
            assert ask(each) == (200, "close"), "its last one"
            assert ask(each) == (200, "close"), "on a new connection"
            each.close()
        with grpc.insecure_channel(served.grpc) as channel:
            call = Caller(channel)
            assert not call("ServerReady").ready
            assert call("ServerLive").live
            assert call("ModelInfer", infer_request(np.zeros((1, 32, 32, 3), dtype=np.uint8))).model_name == "msmlp"
        served.process.send_signal(signal.SIGTERM)
        check_end(served, 0)


def ask(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
    connection.request("POST", "/classify", IMAGE, {"Content-Type": "image/png"})
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers["Connection"]


def test_under_load_no_request_is_lost(tiny_weights: Path) -> None:
    """A client may find the port closed, but what it could send is answered."""
    with msmlp_serve(tiny_weights, "--frontends", "2", "--drain-seconds", "1") as served:
        served.wait_until_ready(2)
        host, port = served.url.removeprefix("http://").split(":")

        def load(_: int) -> Counter[Any]:
            found: Counter[Any] = Counter()
            connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS)
            while True:
                new = connection.sock is None
                try:
                    found[ask(connection)] += 1
                except ConnectionRefusedError:
                    return found
                except ConnectionResetError:
                    found["reset", new] += 1
                    return found

        with ThreadPoolExecutor(6) as pool:
            loads = [pool.submit(load, number) for number in range(6)]
            wait_until(lambda: served.metric("msmlp_images_total") > 100)
            served.process.send_signal(signal.SIGTERM)
            found = sum((each.result() for each in loads), Counter())
        # Between the last look at who waits to be accepted and the close one may come.
        assert found.pop(("reset", True), 0) <= 1
        assert set(found) == {(200, None), (200, "close")}
        check_end(served, 0)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_drain(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights, "--frontends", "1", "--drain-seconds", "1000") as served:
        served.wait_until_ready()
        served.process.send_signal(signal.SIGINT)
        check_end(served, 0)


def test_a_front_end_that_dies_while_it_drains_is_not_replaced(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights, "--frontends", "1", "--drain-seconds", "1000") as served:
        served.wait_until_ready()
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("draining")
        os.kill(min(front_ends(served)), signal.SIGKILL)
        check_end(served, 1, killed=1)


# What has none is cut.


@contextmanager
def gone_within(served: Served, seconds: float) -> Iterator[None]:
    """A signal's consequences, until the end of the process; in `make chaos` they must not take longer."""
    began = time.monotonic()
    yield
    served.process.wait(PATIENCE_SECONDS)
    if os.environ.get("HYPOTHESIS_PROFILE") == "chaos":
        assert time.monotonic() - began < seconds


def cut_after(served: Served, seconds: float, connections: list[socket.socket]) -> list[list[httpx.Response]]:
    """What clients are answered from SIGTERM on."""
    with gone_within(served, seconds + 2):
        served.process.send_signal(signal.SIGTERM)
        return [list(answers(received(connection))) for connection in connections]


@pytest.mark.parametrize("path", ["/classify", "/v2/models/msmlp/infer"])
def test_half_a_body_is_cut(tiny_weights: Path, path: str) -> None:
    with serving(tiny_weights, 1, "inline", shutdown_seconds=0.5, body_seconds=0) as served:
        with connect(served) as connection, connect(served) as head:
            connection.sendall(asked(IMAGE, path)[: -len(IMAGE) // 2])
            head.sendall(asked(IMAGE, path)[:30])
            wait_until(lambda: served.metric("msmlp_connections") == 3)
            [answer], [refused] = cut_after(served, 0.5, [connection, head])
            check_cut(answer)
            check_cut(refused, refused.headers["X-Request-ID"])
        check_end(served, 1, cut=2)


def test_a_client_that_goes_on_sending_gets_its_answer_too(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "inline", shutdown_seconds=0.5) as served, connect(served) as connection:
        connection.sendall(asked(bytes(2**25))[: 2**24])
        connection.settimeout(0.01)
        found = b""
        with gone_within(served, 0.5 + 2):
            served.process.send_signal(signal.SIGTERM)
            while b"}" not in found:
                with suppress(TimeoutError):
                    connection.send(bytes(2**10))
                with suppress(TimeoutError):
                    found += connection.recv(2**16)
        [answer] = answers(found)
        check_cut(answer)
        check_end(served, 1, cut=1)


def test_decoders_that_are_busy_are_not_waited_for(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "inline", shutdown_seconds=0.2, decode_threads=1, max_wait_ms=0) as served:
        with ThreadPoolExecutor(8) as pool:
            last = [pool.submit(ask_until_the_last, served, black(5600)) for _ in range(8)]
            wait_until(lambda: in_flight(served) == 8)
            with gone_within(served, 0.2 + 2):
                served.process.send_signal(signal.SIGTERM)
                found = [each.result() for each in last]
        assert {answer.status_code for answer in found} <= {200, 503}
        cut = [answer for answer in found if answer.status_code == 503]
        assert len(cut) > 2
        for answer in cut:
            check_cut(answer)
        check_end(served, 1, cut=len(cut))


def ask_until_the_last(served: Served, image: bytes) -> httpx.Response:
    """Ask again and again on one connection → what is answered last on it."""
    headers = {"Content-Type": "image/png", "X-Request-ID": ID}
    with httpx.Client(timeout=PATIENCE_SECONDS) as client:
        while True:
            answer = client.post(f"{served.url}/classify", content=image, headers=headers)
            if answer.headers.get("Connection") == "close":
                return answer


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_stage_that_hangs_is_not_waited_for(tiny_weights: Path, engine: str) -> None:
    with serving(tiny_weights, 2, engine, shutdown_seconds=0.5) as served, connect(served) as connection:
        started = children(served.process.pid)
        connection.sendall(asked(shown(hanging.HANGS)))
        wait_until(lambda: in_flight(served) == 1)
        [[answer]] = cut_after(served, 0.5, [connection])
        check_cut(answer)
        check_end(served, 1, cut=1)
        wait_until(lambda: not alive(started))


def test_a_stage_that_hangs_for_nobody_is_not_waited_for_either(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "thread", shutdown_seconds=1000) as served:
        with connect(served) as connection:
            connection.sendall(asked(shown(hanging.HANGS)))
            wait_until(lambda: in_flight(served) == 1)
        wait_until(lambda: in_flight(served) == 0)
        with gone_within(served, LAST_SECONDS + 2):
            served.process.send_signal(signal.SIGTERM)
        check_end(served, 0)


def test_a_front_end_that_hangs_is_killed(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "inline", shutdown_seconds=0.5) as served, connect(served) as connection:
        started = children(served.process.pid)
        connection.sendall(asked(shown(hanging.HANGS)))
        time.sleep(0.2)
        assert cut_after(served, 0.5, [connection]) == [[]]
        check_end(served, 1, killed=1)
        wait_until(lambda: not alive(started))


def test_a_client_that_does_not_read_is_not_waited_for(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "inline", shutdown_seconds=0.5, body_seconds=0) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
            wait_until(lambda: unread(connection) > 2**15)
            with gone_within(served, 0.5 + 2):
                served.process.send_signal(signal.SIGTERM)
        waiting = re.search(r"\((\d+) cut, ", served.log)
        assert waiting
        check_end(served, 1, cut=max(1, int(waiting[1])))


def unread(connection: socket.socket) -> int:
    """Bytes that the other side's system has for this one, which does not read."""
    port = f":{connection.getsockname()[1]:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].partition(":")[0], 16) for line in lines if line[2].endswith(port))


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_it_at_once(tiny_weights: Path, first: signal.Signals, second: signal.Signals) -> None:
    with serving(tiny_weights, 1, "process", shutdown_seconds=1000) as served, connect(served) as connection:
        connection.sendall(asked(shown(hanging.HANGS)))
        wait_until(lambda: in_flight(served) == 1)
        served.process.send_signal(first)
        served.wait_for("shutting down")
        with gone_within(served, 1):
            served.process.send_signal(second)
            [answer] = answers(received(connection))
        check_cut(answer)
        check_end(served, 1, cut=1)


# gRPC.


@contextmanager
def calling(weights: Path, **settings: Any) -> Iterator[tuple[Served, Caller]]:
    with serving(weights, 1, "process", grpc_port=0, **settings) as served, grpc.insecure_channel(served.grpc) as to:
        grpc.channel_ready_future(to).result(PATIENCE_SECONDS)
        yield served, Caller(to)


def tensor(label: int) -> Any:
    return infer_request(picture(1.0, label=label, size=32)[None], ID)


def test_calls_in_flight_are_answered_first(tiny_weights: Path) -> None:
    with calling(tiny_weights) as (served, call):
        slow = call.start("ModelInfer", tensor(hanging.SLOW))
        wait_until(lambda: in_flight(served) == 1)
        served.process.send_signal(signal.SIGTERM)
        assert slow.result().id == ID
        check_end(served, 0)


def test_calls_that_hang_are_cut(tiny_weights: Path) -> None:
    with calling(tiny_weights, shutdown_seconds=0.5) as (served, call):
        hangs = call.start("ModelInfer", tensor(hanging.HANGS))
        stream = call.stream(iter([tensor(hanging.HANGS)]))
        wait_until(lambda: in_flight(served) == 2)
        with gone_within(served, 0.5 + 2), silent_call(SimpleNamespace(call=call)) as silent:
            call("ServerLive")  # behind it on the same connection
            served.process.send_signal(signal.SIGTERM)
            for unanswered in (hangs, silent):
                with pytest.raises(grpc.RpcError) as raised:
                    unanswered.result()
                error: Any = raised.value
                assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, CUT)
            response = next(stream)
            assert (response.error_message, response.infer_response.id) == (CUT, ID)
        check_end(served, 1, cut=3)
