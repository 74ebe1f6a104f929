"""`msmlp serve --frontends 2`: real processes, which are killed, stopped and drained."""

import http.client
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served, msmlp_serve
from tests.servers import encoded, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

IMAGE = encoded(np.zeros((32, 32, 3), dtype=np.uint8))
ESTABLISHED, LISTEN = "01", "0A"
PNG = {"Content-Type": "image/png"}


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def front_ends(served: Served) -> set[int]:
    """Process ids, and that of an engine they share; the supervisor's other child is a helper of multiprocessing."""

    def command(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            return b""

    return {pid for pid in children(served.process.pid) if b"spawn_main" in command(pid)}


def alive(pids: set[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


@contextmanager
def two(weights: Path, *options: str) -> Iterator[Served]:
    # Small batches are soon warm.
    with msmlp_serve(weights, "--frontends", "2", "--max-batch", "2", *options) as served:
        served.wait_until_ready(2)
        yield served


@pytest.fixture(scope="module")
def running(tiny_weights: Path) -> Iterator[Served]:
    """One service for the tests that leave it as it is."""
    with two(tiny_weights, "--capacity", "6") as served:
        yield served


class Client:
    """A connection that is kept, and the process at its other end."""

    def __init__(self, served: Served) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        self._served = served
        self.connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS)
        self.connection.connect()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def classify(self) -> int:
        self.connection.request("POST", "/classify", IMAGE, PNG)
        response = self.connection.getresponse()
        response.read()
        return response.status

    @property
    def at(self) -> int | None:
        """The front end that has the connection; None while the supervisor has."""
        here, there = f":{self.connection.sock.getsockname()[1]:04X}", f":{self.connection.port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if local.endswith(there) and remote.endswith(here):
                return next((pid for pid in front_ends(self._served) if has_socket(pid, inode)), None)
        return None

    def holder(self) -> int:
        """The front end that has the connection, once one has."""
        wait_until(lambda: self.at is not None)
        held = self.at
        assert held is not None
        return held


def has_socket(pid: int, inode: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for file in list(Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(FileNotFoundError):  # this one was closed; the others count
                if str(file.readlink()) == f"socket:[{inode}]":
                    return True
    return False


@pytest.mark.parametrize(("number", "spread"), [(3, [1, 2]), (8, [4, 4])])
def test_connections_spread(running: Served, number: int, spread: list[int]) -> None:
    with ExitStack() as opened:
        # What came before has left.
        wait_until(lambda: not sockets(running.url, ESTABLISHED))
        clients = [opened.enter_context(Client(running)) for _ in range(number)]
        wait_until(lambda: all(client.at for client in clients))
        assert sorted(Counter(client.at for client in clients).values()) == spread
        assert {client.classify() for client in clients} == {200}


def test_clients_of_a_killed_front_end_are_spread_again(tiny_weights: Path) -> None:
    with two(tiny_weights) as served, ExitStack() as opened:
        clients = [opened.enter_context(Client(served)) for _ in range(8)]
        wait_until(lambda: all(client.at for client in clients))
        assert {client.classify() for client in clients} == {200}
        killed = clients[0].holder()
        left = [client for client in clients if client.at != killed]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not alive({killed}))
        clients = left + [opened.enter_context(Client(served)) for _ in range(len(clients) - len(left))]

        def spread() -> bool:
            """Busy ones move between two requests, idle ones at any time."""
            assert {client.classify() for client in clients[1:-1]} == {200}
            return sorted(Counter(client.at for client in clients if client.at).values()) == [4, 4]

        wait_until(spread)
        assert len({client.at for client in clients} - {None, killed}) == 2
        assert {client.classify() for client in clients} == {200}
        assert "Traceback" not in served.log


def test_open_connections_are_counted_over_all(running: Served) -> None:
    with ExitStack() as opened:
        for _ in range(4):
            opened.enter_context(Client(running))
        wait_until(lambda: running.metric("msmlp_connections") == 5)  # with the one that asks
    wait_until(lambda: running.metric("msmlp_connections") == 1)
    assert running.metric("msmlp_connections_refused_total") == 0


def sockets(address: str, state: str) -> list[str]:
    """The inodes of the sockets at an address, ...:port."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    files = Path("/proc/net/tcp"), Path("/proc/net/tcp6")  # gRPC's are of both kinds
    lines = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()[1:]]
    return [line[9] for line in lines if line[1].endswith(port) and line[3] == state]


def test_all_listen_for_grpc_on_one_port(tiny_weights: Path) -> None:
    with two(tiny_weights, "--grpc-port", "0") as served:
        wait_until(lambda: served.log.count("serving gRPC") == 2)
        listening = sockets(served.grpc, LISTEN)
        for pid in front_ends(served):
            assert any(has_socket(pid, inode) for inode in listening)
        assert not any(has_socket(served.process.pid, inode) for inode in listening)
        with triton.InferenceServerClient(served.grpc) as caller:
            tensor = triton.InferInput("pixels", [3, 32, 32, 3], "UINT8")
            tensor.set_data_from_numpy(np.zeros((3, 32, 32, 3), dtype=np.uint8))
            caller.infer("msmlp", [tensor])
            assert caller.get_inference_statistics("msmlp").model_stats[0].inference_count == 3
        assert served.metric("msmlp_images_total") == 3


def kill_one_under_load(served: Served) -> float:
    """Kill a front end while six clients ask; it alone loses connections, and is replaced → how long the slowest answer
    took, in seconds."""
    with ExitStack() as opened:
        clients = [opened.enter_context(Client(served)) for _ in range(6)]
        assert {client.classify() for client in clients} == {200}
        places = {client: client.at for client in clients}
        victim = places[clients[0]]
        assert victim is not None
        lost: set[Client] = set()
        enough, answered, slowest = threading.Event(), Counter[int](), [0.0]

        def load(client: Client) -> None:
            while not enough.is_set():
                asked = time.monotonic()
                try:
                    answered[client.classify()] += 1
                except (OSError, http.client.HTTPException):
                    lost.add(client)
                    return
                slowest.append(time.monotonic() - asked)

        threads = [threading.Thread(target=load, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        wait_until(lambda: answered[200] > 50)
        counted = [served.metric("msmlp_images_total")]
        os.kill(victim, signal.SIGKILL)

        def back() -> bool:
            counted.append(served.metric("msmlp_images_total"))
            return victim not in front_ends(served) and served.metric("msmlp_frontends_ready") == 2

        wait_until(back)
        enough.set()
        for thread in threads:
            thread.join()
    assert lost == {client for client in clients if places[client] == victim}
    assert set(answered) == {200}
    assert counted == sorted(counted)
    assert counted[0] > 50
    return max(slowest)


def test_one_killed_under_load_loses_only_its_own_connections(tiny_weights: Path) -> None:
    with two(tiny_weights) as served:
        kill_one_under_load(served)
        assert served.metric("msmlp_frontend_restarts_total") == 1
        assert httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200
        assert "was killed by signal 9; restart in" in served.log
        assert "Traceback" not in served.log


@pytest.mark.chaos
def test_however_often_one_is_killed_the_others_answer_within_seconds(tiny_weights: Path) -> None:
    with two(tiny_weights) as served:
        for number in range(1, 5):
            assert kill_one_under_load(served) < 5
            assert served.metric("msmlp_frontend_restarts_total") == number
        assert "Traceback" not in served.log


def test_one_that_hangs_is_replaced_while_the_other_answers(tiny_weights: Path) -> None:
    with two(tiny_weights) as served, Client(served) as one, Client(served) as other:
        hanging = one.holder()
        assert hanging != other.holder()
        os.kill(hanging, signal.SIGSTOP)
        answered = 0

        def replaced() -> bool:
            nonlocal answered
            answered += other.classify() == 200
            return hanging not in front_ends(served)

        wait_until(replaced)
        assert answered > 1
        with pytest.raises((OSError, http.client.HTTPException)):
            one.classify()  # its connection was reset
        for _ in range(4):
            assert httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200
        wait_until(lambda: served.metric("msmlp_frontends_ready") == 2)
        assert "does not respond" in served.log


def test_one_that_stays_dead_leaves_the_service_to_the_other(tiny_weights: Path) -> None:
    """It is ready though one front end is not."""
    with two(tiny_weights) as served:
        victim = min(front_ends(served))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive({victim}))
        assert httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200
        answer = httpx.post(f"{served.url}/classify", content=IMAGE, headers=PNG, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200


def test_front_ends_that_share_an_engine_outlive_it(tiny_weights: Path) -> None:
    with two(tiny_weights, "--engine", "process") as served, Client(served) as one, Client(served) as other:
        assert {one.classify(), other.classify()} == {200}
        assert served.metric("msmlp_engines") == 1
        before = front_ends(served)
        (engine,) = (pid for pid in before if pid not in {one.holder(), other.holder()})
        os.kill(engine, signal.SIGKILL)
        statuses: Counter[int] = Counter()

        def back() -> bool:
            for client in (one, other):
                statuses[client.classify()] += 1
            return statuses[503] > 0 and served.metric("msmlp_frontends_ready") == 2

        wait_until(back)
        assert set(statuses) <= {200, 503}
        assert {one.classify(), other.classify()} == {200}
        assert served.metric("msmlp_engine_restarts_total") == 1
        assert served.metric("msmlp_frontend_restarts_total") == 0
        after = front_ends(served)
        assert after >= before - {engine}
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0
        wait_until(lambda: not alive(after))
        assert "Traceback" not in served.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_all(tiny_weights: Path, number: signal.Signals) -> None:
    with two(tiny_weights, "--grpc-port", "0") as served, Client(served) as client:
        assert client.classify() == 200
        started = children(served.process.pid)
        assert len(started) == 3
        served.process.send_signal(number)
        assert served.end() == 0
        wait_until(lambda: not alive(started))
        assert "Traceback" not in served.log


@pytest.mark.parametrize(("engine", "processes"), [("inline", 1), ("process", 2)])
def test_one_front_end_is_supervised_like_several(tiny_weights: Path, engine: str, processes: int) -> None:
    with msmlp_serve(tiny_weights, "--frontends", "1", "--engine", engine, "--max-batch", "2") as served:
        served.wait_until_ready()
        before = front_ends(served)
        assert len(before) == processes
        with Client(served) as client:
            assert client.classify() == 200
            os.kill(client.holder(), signal.SIGKILL)
        wait_until(lambda: len(front_ends(served) - before) == 1)
        with Client(served) as client:
            wait_until(lambda: client.classify() == 200)
        assert served.metric("msmlp_frontend_restarts_total") == 1
        assert served.metric("msmlp_images_total") >= 1
        assert "Traceback" not in served.log


def test_a_supervisor_that_is_killed_leaves_no_process(tiny_weights: Path) -> None:
    with two(tiny_weights) as served:
        started = children(served.process.pid)
        assert len(started) >= 2, "both front ends"
        assert alive(started)
        served.process.kill()
        served.end()
        wait_until(lambda: not alive(started))


def test_limits_are_totals(running: Served) -> None:
    assert running.metric("msmlp_capacity_images") == 6
    files = [("images", IMAGE)] * 4
    answer = httpx.post(f"{running.url}/classify", files=files, timeout=PATIENCE_SECONDS)
    assert (answer.status_code, "3" in answer.json()["detail"]) == (413, True)


def test_metrics_and_statistics_count_what_was_answered_before_whoever_did(running: Served) -> None:
    before = running.metric("msmlp_images_total")
    for number in range(1, 7):
        with Client(running) as client:
            assert client.classify() == 200
        assert running.metric("msmlp_images_total") == before + number
        statistics = httpx.get(f"{running.url}/v2/models/stats", timeout=PATIENCE_SECONDS).json()
        assert statistics["model_stats"][0]["inference_count"] == before + number
