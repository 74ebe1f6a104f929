"""The engine's process dies in many ways; nothing hangs, nothing stays."""

import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from msmlp.model.errors import DeviceError
from msmlp.service.engine.messages import Answers, Died, Failed, Outbound, Ready, Stop
from msmlp.service.engine.process import supervisor
from msmlp.service.engine.process.child import ChildSpec
from msmlp.service.engine.process.supervisor import Backoff, ProcessWorker
from tests.engines import BROKEN, FATAL, Build, Talk, ends_at_once, process
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
    talk = Talk(process, build, permits=64)
    worker = talk.worker
    assert isinstance(worker, ProcessWorker)
    worker._backoff = Backoff(first=0.01, longest=0.01)
    talk.hear(Ready)
    yield talk, build
    worker.put(Stop())
    worker.join(PATIENCE_SECONDS)
    assert talk.hear(Died) == Died("stopped")


def pid_of(talk: Talk) -> int:
    assert isinstance(talk.worker, ProcessWorker)
    pid = talk.worker.pid
    assert pid is not None
    return pid


def comes_back(talk: Talk, before: int) -> None:
    """Another child, warm, that answers."""
    talk.hear(Ready)
    assert pid_of(talk) != before
    talk.submit(50, pictures(2, 1.0))
    assert talk.hear(Answers).request.tolist() == [50, 50]


def test_a_killed_child_is_followed_by_another(running: tuple[Talk, Build]) -> None:
    talk, build = running
    before = pid_of(talk)
    with talk.device_held(build.gate):
        talk.submit(1, pictures(8, 1.0))
        os.kill(before, signal.SIGKILL)
        died = talk.hear(Died)
        assert died == Died("the engine's process was killed by signal 9", restarting=True)
    comes_back(talk, before)


def test_a_child_that_ends_without_a_word_is_followed_by_another(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    before = pid_of(talk)
    talk.submit(1, pictures(1, 1.0, label=FATAL))
    assert talk.hear(Died) == Died("the engine's process ended with status 9", restarting=True)
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


def test_a_request_larger_than_the_ring_is_refused(running: tuple[Talk, Build]) -> None:
    talk, _ = running
    with pytest.raises(DeviceError, match="257 images in a request, at most 256 fit"):
        talk.submit(1, pictures(257, 1.0))
    talk.submit(2, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [2]


def test_a_child_that_dies_before_it_was_ready_is_not_restarted() -> None:
    talk = Talk(process, ends_at_once, permits=8)
    assert talk.hear(Died) == Died("the engine's process ended with status 7")
    talk.worker.join(PATIENCE_SECONDS)


def test_a_stop_during_the_warm_up_ends_it_at_once() -> None:
    build = Build()
    with build.gate.held():
        talk = Talk(process, build, permits=8)
        build.gate.wait_until_reached()
        talk.worker.put(Stop())
        talk.worker.join(PATIENCE_SECONDS)
        assert talk.hear(Died) == Died("stopped")
    assert not talk.worker.ready.is_set()


def test_a_child_that_does_not_stop_is_killed() -> None:
    build = Build()
    talk = Talk(process, build, permits=8)
    talk.hear(Ready)
    with talk.device_held(build.gate):
        talk.worker.put(Stop())
        talk.worker.join(0.01)
        assert talk.hear(Died) == Died("stopped")


class FakeChild:
    """Children with scripted messages, one life after the other; an exception for one that cannot be started."""

    pid = 1

    def __init__(self, lives: list[list[Outbound] | Exception]) -> None:
        self._lives = lives

    def __call__(self, spec: ChildSpec) -> "FakeChild":
        life = self._lives.pop(0)
        if isinstance(life, Exception):
            raise life
        self._says: list[list[Outbound] | None] = [life, None]
        return self

    def receive(self) -> list[Outbound] | None:
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


def of_fakes(monkeypatch: pytest.MonkeyPatch, *lives: list[Outbound] | Exception) -> tuple[Patience, list[Outbound]]:
    """A supervisor's life over those of its children → its patience, and what it said."""
    said: list[Outbound] = []
    monkeypatch.setattr(supervisor, "ChildProcess", FakeChild(list(lives)))
    worker = ProcessWorker(Build(), said.extend, permits=8, stages=3, size=8, ring_images=8)
    worker._backoff = patience = Patience()
    worker.start()
    worker.join(PATIENCE_SECONDS)
    return patience, said


def test_a_child_that_cannot_be_started_again_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a server would wait for it for ever."""
    _, said = of_fakes(monkeypatch, [READY], OSError("no space left"))
    assert said[-1] == Died("engine failed")


def test_a_long_start_is_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 100)
    only_here = SimpleNamespace(monotonic=lambda: float(next(clock)))  # other threads' event loops need the real one
    monkeypatch.setattr("msmlp.service.engine.process.supervisor.time", only_here)
    patience, _ = of_fakes(monkeypatch, [READY], [Died("no device", restarting=True)], OSError())
    assert patience.lived[0] == 100
    assert patience.lived[1] < 0, "never ready, however long it took"


PARENT = """
    import sys, time
    from tests.engines import Build, process

    def say(what):
        sys.stdout.write(f"{what}\\n")  # two threads do, and print writes the line's end apart
        sys.stdout.flush()

    if __name__ == "__main__":
        worker = process(Build(), lambda messages: say(worker.pid), permits=8)
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


def shared_files() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir() if re.match(r"psm_|pym-", entry.name)}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev/shm")
def test_a_killed_parent_leaves_neither_child_nor_memory(tmp_path: Path) -> None:
    before = shared_files()
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            said = [parent.stdout.readline() for _ in range(2)]
            child = int(re.findall(r"(\d+)$", "".join(said), re.MULTILINE)[0])
            assert "False\n" in said, "a server imports no torch for an engine that is another process"
            assert alive(child)
            assert shared_files() == before, "the memory has no name"
        finally:
            parent.kill()  # or leaving the block would wait for it
    wait_until(lambda: not alive(child))
    assert shared_files() == before
