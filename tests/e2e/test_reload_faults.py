"""Reloads that fail, and what happens during one."""

import fcntl
import http.client
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from msmlp.model.weights import load_calibration, load_weights, model_version
from tests.chaos.harness import at_length
from tests.e2e.test_frontends import Client, alive, children, front_ends
from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import Served, environment
from tests.reloads import KEY, put, reload
from tests.servers import encoded, wait_until
from tests.service.frontends import reloading
from tests.service.frontends.hanging import SLOW
from tests.service.grpc.conftest import Caller, infer_request
from tests.service.grpc.test_streams import Requests

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

IMAGE = encoded(picture(1.0, size=32))
SLOW_IMAGE = encoded(picture(1.0, label=SLOW, size=32))


def version_of(folder: Path) -> str:
    weights = load_weights(folder)
    return model_version(weights, load_calibration(weights))


class Stand:
    """A service of a copy of weights, and the fault at the next start of its engines."""

    def __init__(self, served: Served, folder: Path, processes: int) -> None:
        self.served, self.folder, self._fault = served, folder, folder.parent / "fault"
        self._processes = processes

    def settle(self) -> None:
        """Until those of earlier generations have ended."""
        wait_until(lambda: len(front_ends(self.served)) == self._processes)

    def fault(self, what: str) -> None:
        self._fault.write_text(what)

    def well(self) -> None:
        self._fault.unlink(missing_ok=True)

    @property
    def version(self) -> str:
        return str(httpx.get(f"{self.served.url}/model", timeout=PATIENCE_SECONDS).json()["version"])

    def classify(self) -> int:
        url = f"{self.served.url}/classify"
        headers = {"Content-Type": "image/png"}
        return httpx.post(url, content=IMAGE, headers=headers, timeout=PATIENCE_SECONDS).status_code

    @contextmanager
    def warming(self) -> Iterator[tuple[Future[httpx.Response], set[int]]]:
        """Inside, a reload that was asked for by POST does not become ready: its answer, and its front ends."""
        self.fault("slow")
        before = front_ends(self.served)
        try:
            with ThreadPoolExecutor() as pool:
                answer = pool.submit(reload, self.served)
                wait_until(lambda: len(front_ends(self.served) - before) >= 2 or answer.done())
                try:
                    yield answer, front_ends(self.served) - before
                finally:
                    self.well()
        finally:
            self.well()


@contextmanager
def stand(weights: Path, where: Path, engine: str = "inline", frontends: int = 2, **settings: Any) -> Iterator[Stand]:
    folder, keys = where / "weights", where / "keys"
    put(folder, weights)
    keys.write_text(KEY + "\n")
    of_process = "start_new_session", "preexec_fn", "env"
    how = {"env": environment(), **{name: settings.pop(name) for name in of_process if name in settings}}
    words = [f"{name}={value}" for name, value in {"admin_keys_file": keys, "drain_seconds": 0, **settings}.items()]
    command = [sys.executable, reloading.__file__, str(folder), str(frontends), engine, *words]
    served = Served(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how))
    try:
        served.wait_until_ready(frontends)
        yield Stand(served, folder, frontends + (engine == "process"))
    finally:
        served.kill()


@pytest.fixture(scope="module", params=["inline", *at_length("process")])
def running(
    request: pytest.FixtureRequest, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """One service for the tests after which it serves as before."""
    with stand(tiny_weights, tmp_path_factory.mktemp("served"), request.param) as running:
        yield running


@pytest.fixture
def well(running: Stand) -> Iterator[Stand]:
    running.settle()
    yield running
    running.well()


@pytest.mark.parametrize(
    ("fault", "status", "code", "outcome", "why"),
    [
        (
            "1000000",
            507,
            "insufficient_memory",
            "insufficient_memory",
            r"need \d+ bytes beside the .*; 1000000 are free",
        ),
        ("broken", 503, "reload_failed", "failed", "the device is broken"),
        ("dead", 503, "reload_failed", "failed", "ended with status 3"),
    ],
)
def test_what_cannot_start_leaves_what_is_served_and_says_why(
    well: Stand, fault: str, status: int, code: str, outcome: str, why: str
) -> None:
    served, processes = well.served, front_ends(well.served)
    before = served.metric(f'msmlp_reloads_total{{outcome="{outcome}"}}')
    well.fault(fault)
    answer = reload(served)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert re.search(why, answer.json()["detail"])
    served.wait_for(f"not reloaded.*{why}")
    assert served.metric(f'msmlp_reloads_total{{outcome="{outcome}"}}') == before + 1
    wait_until(lambda: front_ends(served) == processes)
    assert well.classify() == 200
    well.well()
    assert reload(served).status_code == 200
    assert well.classify() == 200


def test_a_second_one_is_refused_while_one_runs(well: Stand) -> None:
    with well.warming() as (first, _):
        second = reload(well.served)
        assert (second.status_code, second.json()["code"]) == (409, "reloading")
        assert well.classify() == 200
        assert not first.done()
    assert first.result().status_code == 200
    well.settle()


def test_a_new_front_end_that_is_killed_ends_the_reload(well: Stand) -> None:
    with well.warming() as (answer, new):
        os.kill(max(new), signal.SIGKILL)
        assert answer.result(PATIENCE_SECONDS).json()["code"] == "reload_failed"
        wait_until(lambda: not alive(new))
    assert well.classify() == 200


def test_an_old_front_end_that_is_killed_is_replaced_and_the_reload_goes_on(well: Stand) -> None:
    served = well.served
    restarts = served.metric("msmlp_frontend_restarts_total")
    with Client(served) as client:
        assert client.classify() == 200
        # The one that is asked to reload is another: it has fewer connections.
        with well.warming() as (answer, _):
            os.kill(client.holder(), signal.SIGKILL)
            wait_until(lambda: served.metric("msmlp_frontend_restarts_total") == restarts + 1)
            assert well.classify() == 200
            assert not answer.done()
        assert answer.result().status_code == 200
    wait_until(lambda: served.metric("msmlp_frontends_ready") == 2)
    assert well.classify() == 200


def test_one_that_dies_after_the_folder_has_changed_does_not_come_back_with_other_weights(
    tiny_weights: Path, tmp_path: Path
) -> None:
    with stand(tiny_weights, tmp_path) as running, Client(running.served) as client:
        before = running.version
        change(running.folder)
        os.kill(client.holder(), signal.SIGKILL)
        running.served.wait_for("died: the weights folder has changed")
        assert {running.version for _ in range(6)} == {before}
        assert reload(running.served).json()["previous_version"] == before
        assert {running.version for _ in range(6)} == {version_of(running.folder)} != {before}
        assert running.served.metric("msmlp_frontends_ready") == 2


def test_nothing_ends_but_what_was_asked_to_when_the_folder_is_gone(tiny_weights: Path, tmp_path: Path) -> None:
    """A front end that cannot come back is no reason for the others to end."""
    with stand(tiny_weights, tmp_path) as running, Client(running.served) as client:
        shutil.rmtree(running.folder)
        os.kill(client.holder(), signal.SIGKILL)
        running.served.wait_for("died: there is no weights folder")
        assert running.classify() == 200


@pytest.mark.parametrize("asked_by", ["signal", "post"])
def test_sigterm_during_a_reload_ends_all(tiny_weights: Path, tmp_path: Path, asked_by: str) -> None:
    with stand(tiny_weights, tmp_path) as running:
        served = running.served
        if asked_by == "post":
            with running.warming() as (answer, _):
                started = children(served.process.pid)
                served.process.send_signal(signal.SIGTERM)
                assert answer.result(PATIENCE_SECONDS).json()["code"] == "draining"
        else:
            running.fault("slow")
            before = front_ends(served)
            served.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(front_ends(served) - before) == 2)
            started = children(served.process.pid)
            served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0, served.log
        wait_until(lambda: not alive(started))
        assert "Traceback" not in served.log


def test_sigterm_ends_all_while_the_weights_folder_hangs(tiny_weights: Path, tmp_path: Path) -> None:
    with stand(tiny_weights, tmp_path) as running, ThreadPoolExecutor() as pool:
        served, started = running.served, children(running.served.process.pid)
        running.fault("hung")
        answer = pool.submit(reload, served)
        served.wait_for("the folder hangs")
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0, served.log
        assert answer.result().json()["code"] == "draining"
        wait_until(lambda: not alive(started))
        assert "Traceback" not in served.log


def test_no_reload_begins_while_the_service_drains(tiny_weights: Path, tmp_path: Path) -> None:
    with stand(tiny_weights, tmp_path, drain_seconds=PATIENCE_SECONDS) as running:
        served = running.served
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("draining: ")
        answer = reload(served)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0


def test_what_is_in_flight_is_answered_with_the_old_weights_and_the_next_with_the_new(
    tiny_weights: Path, tmp_path: Path
) -> None:
    with stand(tiny_weights, tmp_path) as running, Client(running.served) as client:
        before = running.version
        change(running.folder)
        sent = raw(running.served)
        sent.sendall(request(IMAGE)[:-10])
        client.connection.request("POST", "/classify", SLOW_IMAGE, {"Content-Type": "image/png"})
        assert reload(running.served).status_code == 200
        after = version_of(running.folder)
        assert json.loads(client.connection.getresponse().read())["model"]["version"] == before
        sent.sendall(request(IMAGE)[-10:] + request(IMAGE) + request(IMAGE)[:30])
        with sent.makefile("rb") as answers:
            # The one that came in the same packet as the rest was on its way, too.
            assert [version_in(answers) for _ in range(2)] == [before, before]
            sent.sendall(request(IMAGE)[30:])
            assert version_in(answers) in (before, after)
            sent.sendall(request(IMAGE))
            assert version_in(answers) == after
        client.connection.request("POST", "/classify", IMAGE, {"Content-Type": "image/png"})
        assert json.loads(client.connection.getresponse().read())["model"]["version"] == after
        sent.close()


def test_requests_that_outlast_the_shutdown_are_cut_and_told(tiny_weights: Path, tmp_path: Path) -> None:
    with stand(tiny_weights, tmp_path, shutdown_seconds=1) as running, raw(running.served) as sent:
        sent.sendall(request(IMAGE)[:-10])
        wait_until(lambda: running.served.metric("msmlp_connections") == 2)
        old = front_ends(running.served)
        assert reload(running.served).status_code == 200
        assert b"503 Service Unavailable" in sent.recv(2**16)
        wait_until(lambda: not alive(old))
        running.served.wait_for("requests with the old weights that were cut: 1")
        running.served.process.send_signal(signal.SIGTERM)
        assert running.served.end() == 0


@pytest.mark.chaos
def test_a_client_that_does_not_read_holds_nobody_up(tiny_weights: Path, tmp_path: Path) -> None:
    with stand(tiny_weights, tmp_path) as running, socket.socket() as sent:
        before, pages = running.version, 60
        change(running.folder)
        sent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent.settimeout(PATIENCE_SECONDS)
        host, port = running.served.url.removeprefix("http://").split(":")
        sent.connect((host, int(port)))
        sent.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * pages)
        assert reload(running.served).json()["previous_version"] == before
        assert running.version != before
        with sent.makefile("rb") as answers:
            for _ in range(pages):
                assert content(answers)["info"]["title"] == "msmlp"
            sent.sendall(request(IMAGE))
            assert version_in(answers) == version_of(running.folder)
        running.settle()


@pytest.mark.chaos
def test_a_connection_that_the_other_parser_reads_changes_too(tiny_weights: Path, tmp_path: Path) -> None:
    with (
        stand(tiny_weights, tmp_path, frontends=1) as running,
        raw(running.served) as sent,
        sent.makefile("rb") as answers,
    ):
        for _ in range(2):
            sent.sendall(b"M-SEARCH /model HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 405 " in answers.readline()
            length = int(http.client.parse_headers(answers)["Content-Length"])
            assert json.loads(answers.read(length))["code"] == "method_not_allowed"
            change(running.folder)
            assert reload(running.served).status_code == 200
        sent.sendall(request(IMAGE))
        assert version_in(answers) == version_of(running.folder)


@pytest.mark.chaos
def test_an_idle_connection_that_has_changed_is_still_an_idle_one(tiny_weights: Path, tmp_path: Path) -> None:
    """And one that has said nothing yet has the time of one that has just come."""
    with stand(tiny_weights, tmp_path, head_seconds=1) as running, Client(running.served) as client:
        assert client.classify() == 200
        assert reload(running.served).status_code == 200
        with raw(running.served) as new:
            wait_until(lambda: running.served.metric("msmlp_connections") == 3)
            assert reload(running.served).status_code == 200
            assert new.recv(1) == b""
        assert client.classify() == 200


@pytest.mark.parametrize("engine", ["inline", *at_length("process")])
def test_over_grpc_every_call_is_answered_and_those_after_the_reload_by_the_new(
    tiny_weights: Path, tmp_path: Path, engine: str
) -> None:
    with stand(tiny_weights, tmp_path, engine, grpc_port=0) as running:
        served, before, enough = running.served, running.version, threading.Event()
        answered: list[tuple[float, str]] = []

        def ask() -> None:
            with grpc.insecure_channel(served.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                call, one = Caller(channel), infer_request(np.zeros((1, 32, 32, 3), np.uint8))
                while not enough.is_set():
                    begun = time.monotonic()
                    answered.append((begun, call("ModelInfer", one).model_version))

        with ThreadPoolExecutor() as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                wait_until(lambda: len(answered) > 20 or any(each.done() for each in asking))
                change(running.folder)
                assert reload(served).status_code == 200
                switched = time.monotonic()
                wait_until(lambda: answered[-1][0] > switched + 0.2 or any(each.done() for each in asking))
            finally:
                enough.set()
            for each in asking:
                each.result()
        after = version_of(running.folder)
        assert {name for _, name in answered} == {before, after}
        assert {name for begun, name in answered if begun > switched} == {after}
        running.settle()


def test_a_stream_over_grpc_ends_and_the_next_is_answered_by_the_new(tiny_weights: Path, tmp_path: Path) -> None:
    one = infer_request(np.zeros((1, 32, 32, 3), np.uint8))
    with stand(tiny_weights, tmp_path, grpc_port=0) as running, grpc.insecure_channel(running.served.grpc) as channel:
        before, requests = running.version, Requests(one)
        responses = Caller(channel).stream(iter(requests))
        assert next(responses).infer_response.model_version == before
        change(running.folder)
        assert reload(running.served).status_code == 200
        with pytest.raises(grpc.RpcError):
            next(responses)
        assert responses.code() == grpc.StatusCode.UNAVAILABLE
        requests.send(None)
        again = Requests(one)
        again.send(None)
        found = [each.infer_response.model_version for each in Caller(channel).stream(iter(again))]
        assert found == [version_of(running.folder)]


@pytest.mark.parametrize("ignored", [False, *at_length(True)])
def test_when_its_terminal_hangs_up_it_ends_unless_that_is_ignored(
    tiny_weights: Path, tmp_path: Path, ignored: bool
) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    with stand(tiny_weights, tmp_path, start_new_session=True, preexec_fn=take_terminal) as running:
        os.close(theirs)
        os.close(ours)
        if ignored:
            running.served.wait_for("loaded in")
            assert running.classify() == 200
        else:
            assert running.served.end() == 0


def raw(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


def request(body: bytes) -> bytes:
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def content(answers: Any) -> Any:
    """The document of the next answer."""
    assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
    headers = http.client.parse_headers(answers)
    assert headers["Connection"] != "close"
    return json.loads(answers.read(int(headers["Content-Length"])))


def version_in(answers: Any) -> str:
    return str(content(answers)["model"]["version"])


def change(folder: Path) -> None:
    """Another version, whose answers are the same."""
    with (folder / "calibration.json").open("a") as file:
        file.write("\n")


def held(served: Served, temporary: Path) -> tuple[int, int, int]:
    """What the service holds: processes, open files of the supervisor, and folders of engines."""
    pid = served.process.pid
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return len(children(pid)), files, len(list(temporary.iterdir()))


def check_nothing_is_left(weights: Path, where: Path, engine: str, times: int) -> None:
    with (
        tempfile.TemporaryDirectory() as short,  # a socket's path may not be long
        stand(weights, where, engine, env=environment(TMPDIR=short)) as running,
        Client(running.served) as client,
    ):
        served = running.served
        seen: list[tuple[int, int, int]] = []
        for turn in range(times + 2):
            change(running.folder)
            old = front_ends(served)
            if turn % 3 == 2:
                running.fault("broken")
                assert reload(served).status_code == 503
                running.well()
            assert reload(served).status_code == 200
            assert client.classify() == 200
            wait_until(lambda before=old: not alive(before))  # type: ignore[misc]
            wait_until(lambda: served.metric("msmlp_connections") == 2)
            seen.append(held(served, Path(short)))
        wait_until(lambda: held(served, Path(short)) == seen[1])
        assert len(list(Path(f"/proc/{served.process.pid}/task").iterdir())) < 10, "a pool's are kept"
        started = children(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0, served.log
        wait_until(lambda: not alive(started))
        assert "Traceback" not in served.log


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ["inline", "process"])
def test_reloads_leave_nothing_behind(tiny_weights: Path, tmp_path: Path, engine: str) -> None:
    check_nothing_is_left(tiny_weights, tmp_path, engine, 2)


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ["inline", "process"])
def test_many_reloads_leave_nothing_behind(tiny_weights: Path, tmp_path: Path, engine: str) -> None:
    check_nothing_is_left(tiny_weights, tmp_path, engine, 40)


def test_no_counter_falls_over_a_reload(well: Stand) -> None:
    seen: list[dict[str, float]] = []

    def scrape() -> None:
        text = httpx.get(f"{well.served.url}/metrics", timeout=PATIENCE_SECONDS).text
        counters = r"^((?:msmlp|process)_\w+(?:_total|_count|_sum|_bucket)(?:{.*})?) (\S+)$"
        seen.append({series: float(value) for series, value in re.findall(counters, text, re.MULTILINE)})

    for _ in range(5):
        assert well.classify() == 200
    scrape()
    with well.warming() as (answer, _):
        scrape()
    while not answer.done():
        assert well.classify() == 200
        scrape()
    for _ in range(30):
        assert well.classify() == 200
        scrape()
    assert answer.result().status_code == 200
    for before, after in pairwise(seen):
        fallen = {series: (value, after[series]) for series, value in before.items() if after[series] < value}
        assert not fallen
    images = [
        sum(value for name, value in each.items() if name.startswith("msmlp_images_total"))
        for each in (seen[0], seen[-1])
    ]
    assert images[1] >= images[0] + 30
