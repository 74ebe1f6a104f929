"""The engine's process dies in many ways; nothing hangs, nothing stays."""

import itertools
import math
import os
import queue
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from msmlp.model.errors import DeviceError, OptionError
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.messages import Answers, Died, Failed, Ready, Stop
from msmlp.service.engine.process import host as host_module
from msmlp.service.engine.process.child import SIGNALS, ChildSpec
from msmlp.service.engine.process.group import ProcessWorker
from msmlp.service.engine.process.host import MOST_RESTARTS, REAP_SECONDS, Backoff, EngineHost, EngineHosts
from tests.engines import (
    BROKEN,
    FATAL,
    OWN_REQUEST,
    Build,
    OnLoop,
    Talk,
    ends_at_once,
    host_of,
    no_device,
    process_on_loop,
)
from tests.fakes import PATIENCE_SECONDS, pictures
from tests.servers import wait_until


def test_waits_double_up_to_the_longest_and_start_over_after_health() -> None:
    backoff = Backoff(first=0.5, longest=4, healthy=60)
    assert [backoff.after(1) for _ in range(5)] == [0.5, 1, 2, 4, 4]
    assert backoff.after(60) == 0.5
    assert backoff.after(59) == 1


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Talk, Build]]:
    build = Build(capacity=64, max_batch=4)
    talk = Talk(process_on_loop, build, permits=64)
    talk.hear(Ready)
    yield talk, build
    talk.worker.put(Stop())
    talk.worker.join(PATIENCE_SECONDS)
    assert talk.hear(Died) == Died("stopped")
    assert worker_of(talk).pids == []


def worker_of(talk: Talk) -> ProcessWorker:
    assert isinstance(talk.worker, OnLoop)
    assert isinstance(talk.worker.worker, ProcessWorker)
    return talk.worker.worker


def host_in(talk: Talk) -> EngineHost:
    (host,) = worker_of(talk).hosts.all
    return host


def pid_of(talk: Talk) -> int:
    (pid,) = worker_of(talk).pids
    return pid


def how_it_died(talk: Talk) -> str:
    """From its host, which may learn it after the front end."""
    wait_until(lambda: host_in(talk).died is not None)
    died = host_in(talk).died
    assert died is not None
    return died.detail


def comes_back(talk: Talk, before: int) -> None:
    """Another child, warm, that answers."""
    talk.hear(Ready)
    assert pid_of(talk) != before
    talk.submit(50, pictures(2, 1.0))
    assert talk.hear(Answers).request.tolist() == [50, 50]


def test_a_killed_child_is_followed_by_another(running: tuple[Talk, Build]) -> None:
    talk, build = running
    before, restarts = pid_of(talk), host_in(talk).restarts
    with talk.device_held(build.gate):
        talk.submit(1, pictures(8, 1.0))
        talk.submit(2, pictures(1, 1.0))
        os.kill(before, signal.SIGKILL)
        assert sorted(talk.hear(Failed).requests.tolist()) == [1, 2, OWN_REQUEST]
        assert talk.hear(Died).restarting
        assert talk.worker.load is None
    comes_back(talk, before)
    assert host_in(talk).restarts == restarts + 1


def test_a_child_that_ends_without_a_word_is_followed_by_another(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    before = pid_of(talk)
    talk.submit(1, pictures(1, 1.0, label=FATAL))
    assert talk.hear(Died).restarting
    comes_back(talk, before)


def test_a_device_that_fails_again_and_again_gets_a_new_process(running: tuple[Talk, Build]) -> None:
    talk, build = running
    before = pid_of(talk)
    with talk.device_held(build.gate):
        talk.submit(1, pictures(4, 1.0, label=BROKEN))
        talk.submit(2, pictures(4, 1.0, label=BROKEN))
        talk.submit(3, pictures(4, 1.0, label=BROKEN))
    assert [talk.hear(Failed).requests.tolist() for _ in range(3)] == [[1], [2], [3]]
    died = talk.hear(Died)
    assert died.restarting
    assert "3 times in a row" in died.detail
    comes_back(talk, before)


def test_signals_to_the_whole_group_do_not_end_it(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    before = pid_of(talk)
    os.kill(before, signal.SIGINT)
    os.kill(before, signal.SIGTERM)
    talk.submit(1, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [1]
    assert pid_of(talk) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_signal_to_the_group_ends_it_while_it_starts(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    mask = re.search(r"SigBlk:\s+(\w+)", Path(f"/proc/{pid_of(talk)}/status").read_text())
    assert mask
    assert [number.name for number in SIGNALS if not int(mask[1], 16) >> number - 1 & 1] == []


def test_a_request_larger_than_the_ring_is_refused(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    with pytest.raises(DeviceError, match="a request has 257 images; expected at most 256"):
        talk.submit(1, pictures(257, 1.0))
    talk.submit(2, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [2]


@pytest.mark.parametrize(
    ("build", "detail"),
    [(ends_at_once, "the engine's process ended with status 7"), (no_device, "device: cuda is not available here")],
)
def test_a_child_that_was_never_ready_is_not_restarted(build: BackendFactory, detail: str) -> None:
    talk = Talk(process_on_loop, build, permits=8)
    assert talk.hear(Died) == Died(detail)
    talk.worker.join(PATIENCE_SECONDS)
    assert (host_in(talk).restarts, host_in(talk).state) == (0, "out")


class Large(Build):
    """As large as weights are, which a pipe does not take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = bytes(2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="no such program")
def test_a_child_that_is_killed_before_it_reads_anything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    resource_tracker.ensure_running()  # it is such a child, too
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")
    talk = Talk(process_on_loop, Large())
    assert talk.hear(Died) == Died("the engine's process ended with status 1")
    talk.stop()


def test_what_is_large_crosses_too() -> None:
    talk = Talk(process_on_loop, Large())
    assert talk.hear(Ready)
    talk.stop()


def test_a_stop_during_the_warm_up_ends_it_at_once() -> None:
    build = Build()
    with build.gate.held():
        talk = Talk(process_on_loop, build, permits=8)
        build.gate.wait_until_reached()
        talk.worker.put(Stop())
        talk.worker.join(PATIENCE_SECONDS)
        assert talk.hear(Died) == Died("stopped")
    assert not talk.worker.ready.is_set()


def test_a_child_that_does_not_stop_is_killed() -> None:
    build = Build()
    talk = Talk(process_on_loop, build, permits=8)
    talk.hear(Ready)
    with talk.device_held(build.gate):
        talk.worker.put(Stop())
        talk.worker.join(0.01)
        assert talk.hear(Died) == Died("stopped")
        assert worker_of(talk).pids == []


class Stuck:
    """A host whose process ends after so many seconds of a clock that only its waits move."""

    now = 0.0

    def __init__(self, ends: float) -> None:
        self._ends, self.killed = ends, -1.0

    def wait(self, timeout: float | None) -> bool:
        assert timeout is not None
        Stuck.now += min(timeout, max(0.0, self._ends - Stuck.now))
        return self._ends <= Stuck.now

    def kill(self) -> None:
        self.killed = Stuck.now


def test_engines_that_do_not_end_are_killed_together_and_not_waited_for_much_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_module, "time", SimpleNamespace(monotonic=lambda: Stuck.now))
    ends, stuck, also = hosts = [Stuck(3.0), Stuck(math.inf), Stuck(math.inf)]
    EngineHosts(cast("list[EngineHost]", hosts)).join(10.0)
    assert (ends.killed, stuck.killed, also.killed) == (-1.0, 10.0, 10.0)
    assert Stuck.now == 10.0 + REAP_SECONDS
    assert caplog.messages == [f"the system has not ended all engines within {REAP_SECONDS:g} s"]


def test_a_host_alone_says_what_becomes_of_its_engine() -> None:
    """As a supervisor uses it, without a front end."""
    said: queue.SimpleQueue[Ready | Died] = queue.SimpleQueue()
    host = host_of(Build(), permits=8, say=said.put)
    host.start()
    try:
        assert said.get(timeout=PATIENCE_SECONDS) == host.ready == Ready("fake", "none", 8)
        folder = Path(host.address).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        killed = Died("the engine's process was killed by signal 9", restarting=True)
        assert said.get(timeout=PATIENCE_SECONDS) == killed
        assert said.get(timeout=PATIENCE_SECONDS) == Ready("fake", "none", 8)
        assert (host.state, host.restarts, host.died) == ("up", 1, None)
    finally:
        host.stop()
        assert host.wait(PATIENCE_SECONDS)
    assert said.get(timeout=PATIENCE_SECONDS) == host.died == Died("stopped")
    assert (host.state, host.pid) == ("out", None)
    assert not folder.exists()


def test_a_folder_for_temporary_files_that_no_socket_fits_in_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 90)))
    talk = Talk(process_on_loop, Build())
    assert talk.hear(Died) == Died("the engine cannot listen for front ends: AF_UNIX path too long")
    assert list((tmp_path / ("x" * 90)).iterdir()) == []
    talk.worker.join(PATIENCE_SECONDS)


def test_without_a_folder_for_temporary_files_the_socket_is_in_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(host_module, "SHARED_MEMORY", tmp_path)
    assert Path(EngineHost(Build(), permits=None, stages=3, shape=(2, 2, 3)).address).parents[1] == tmp_path
    monkeypatch.setattr(host_module, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(OptionError, match=r"^TMPDIR: no folder .* --engine inline$"):
        EngineHost(Build(), permits=None, stages=3, shape=(2, 2, 3))


class FakeChild:
    """Children that say what is written for them, one child after the other; an exception for one that cannot start."""

    pid = 1

    def __init__(self, lives: list[list[Ready | Died] | Exception]) -> None:
        self._lives = lives

    def __call__(self, spec: ChildSpec, listener: socket.socket) -> "FakeChild":
        life = self._lives.pop(0)
        if isinstance(life, Exception):
            raise life
        self._says: list[Ready | Died | None] = [*life, None]
        return self

    def receive(self, seconds: float) -> Ready | Died | None:
        return self._says.pop(0)

    def close(self) -> int:
        return -9


class Patience(Backoff):
    """Waits for nothing and remembers how long each child was ready."""

    def __init__(self) -> None:
        super().__init__(first=0.0)
        self.lived: list[float] = []

    def after(self, lived: float) -> float:
        self.lived.append(lived)
        return 0.0


READY = Ready("fake", "none", 8)
KILLED = Died("the engine's process was killed by signal 9")


def of_fakes(
    monkeypatch: pytest.MonkeyPatch, *lives: list[Ready | Died] | Exception
) -> tuple[Patience, list[Ready | Died], EngineHost]:
    """A host's life over those of its children → its patience, and what it said."""
    said: list[Ready | Died] = []
    monkeypatch.setattr(host_module, "ChildProcess", FakeChild(list(lives)))
    host = host_of(Build(), say=said.append)
    host._backoff = patience = Patience()
    host.start()
    assert host.wait(PATIENCE_SECONDS)
    assert not Path(host.address).exists()
    return patience, said, host


def test_a_child_that_cannot_be_started_again_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a server would wait for it forever."""
    _, said, _ = of_fakes(monkeypatch, [READY], OSError("no space left"))
    assert said[-1] == Died("engine failed")


def test_restarts_in_a_row_that_are_never_ready_are_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    _, said, host = of_fakes(monkeypatch, [READY], [], [], [READY], *[[]] * MOST_RESTARTS)
    again = replace(KILLED, restarting=True)
    assert said == [READY, again, again, again, READY, *[again] * MOST_RESTARTS, KILLED]
    assert (host.restarts, host.state) == (3 + MOST_RESTARTS, "out")


def test_what_only_the_caller_can_change_is_the_end_after_a_restart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, said, _ = of_fakes(monkeypatch, [READY], [Died("no device")])
    assert said[-1] == Died("no device")


def test_a_long_start_is_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 100)
    only_here = SimpleNamespace(monotonic=lambda: float(next(clock)))  # other threads' event loops need the real one
    monkeypatch.setattr(host_module, "time", only_here)
    patience, _, _ = of_fakes(monkeypatch, [READY], [Died("no device", restarting=True)], OSError())
    assert patience.lived[0] == 100
    assert patience.lived[1] < 0, "never ready, however long it took"


PARENT = """
    import sys, time
    from tests.engines import Build, process_on_loop

    def say(what):
        sys.stdout.write(f"{what}\\n")  # two threads do, and print writes the line's end apart
        sys.stdout.flush()

    if __name__ == "__main__":
        worker = process_on_loop(Build(), lambda messages: say(worker.worker.pids[0]), permits=8)
        worker.start()
        worker.ready.wait()
        say("torch" in sys.modules)
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir() if re.match(r"psm_|pym-", entry.name)}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev/shm")
def test_a_killed_parent_leaves_neither_child_nor_memory_nor_socket(tmp_path: Path) -> None:
    before = shared_memory()
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
    with (
        tempfile.TemporaryDirectory() as folder,  # shorter than tmp_path: a socket's path has a limit
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        ) as parent,
    ):
        try:
            assert parent.stdout is not None
            said = [parent.stdout.readline() for _ in range(2)]
            child = int(re.findall(r"(\d+)$", "".join(said), re.MULTILINE)[0])
            assert "False\n" in said, "a server imports no torch for an engine that is another process"
            assert alive(child)
            assert len(list(Path(folder).iterdir())) == 1, "that of the socket"
            assert shared_memory() == before, "the memory has no name"
        finally:
            parent.kill()  # or leaving the block would wait for it
        wait_until(lambda: not alive(child))
        assert list(Path(folder).iterdir()) == []
        assert shared_memory() == before
