"""Processes are killed, stopped and short of memory while the service answers."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.conftest import Serve
from tests.chaos.harness import Target, at_length, post
from tests.e2e.test_frontends import front_ends
from tests.e2e.test_hangs import is_engine
from tests.servers import encoded, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

SHORTLY = 0.7
"""Less than what is called a hang."""


def victims(target: Target, what: str) -> list[int]:
    """Process ids: one front end, all of them, or the engine; none where there is no such process."""
    of_engines = {pid for pid in front_ends(target.served) if is_engine(pid)}
    if what == "engine":
        return sorted(of_engines)
    found = sorted(front_ends(target.served) - of_engines)
    return found[:1] if what == "front end" else found


def one_of(target: Target, what: str) -> list[int]:
    found = victims(target, what)
    if not found:
        pytest.skip("the engine is inside the front ends")
    return found


def allowed(what: str) -> tuple[str, ...]:
    """A front end takes its connections with it; without its engine it says so."""
    return ("503",) if what == "engine" else ("lost", "cut", "503")


def restarts(target: Target, what: str) -> float:
    return target.served.metric(f"msmlp_{'engine' if what == 'engine' else 'frontend'}_restarts_total")


WHAT = pytest.mark.parametrize("what", ["front end", "engine", "front ends"])


@WHAT
def test_killed(serve: Serve, what: str) -> None:
    target = serve()
    found, before = one_of(target, what), restarts(target, what)
    with target.ordeal(*allowed(what)) as load:
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
        load.wait_for(1)
    assert restarts(target, what) == before + len(found)


@WHAT
@pytest.mark.chaos
def test_killed_again_and_again(serve: Serve, what: str) -> None:
    target = serve()
    one_of(target, what)
    before, killed = restarts(target, what), 0
    with target.ordeal(*allowed(what)) as load:
        for _ in range(4):
            for pid in victims(target, what):
                os.kill(pid, signal.SIGKILL)
                killed += 1
            load.wait_for(20)
    assert killed >= 4
    assert restarts(target, what) == before + killed


@pytest.mark.parametrize("what", ["front end", "engine"])
@pytest.mark.chaos
def test_stopped_for_good(serve: Serve, what: str) -> None:
    target = serve()
    found, before = one_of(target, what), restarts(target, what)
    with target.ordeal(*allowed(what)):
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
    assert restarts(target, what) == before + len(found)


@WHAT
@pytest.mark.chaos
def test_stopped_and_continued(serve: Serve, what: str) -> None:
    """Nobody loses anything, and nothing is replaced."""
    target = serve()
    found = one_of(target, what)
    with target.ordeal() as load:
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SHORTLY)
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        load.wait_for(20)
    assert one_of(target, what) == found


@pytest.mark.parametrize("what", ["front end", *at_length("engine")])
def test_no_memory_to_be_had(serve: Serve, what: str) -> None:
    """As a limit on its address space refuses it; what came meanwhile was refused, or its process was replaced."""
    target = serve()
    (pid,) = one_of(target, what)
    large = encoded(np.zeros((5000, 5000, 3), dtype=np.uint8))
    with target.ordeal("lost", "cut", "503", traces=True) as load:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        assert {post(target, large) for _ in range(6)} <= {200, 503}
        load.wait_for(20)
        if Path(f"/proc/{pid}").exists():
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
