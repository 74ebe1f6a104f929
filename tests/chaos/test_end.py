"""The service is told to end, and to load its weights anew, while clients of every kind are there."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from msmlp.bench.processes import family
from tests.chaos.conftest import Serve
from tests.chaos.harness import SHORT, Target, at_length, serving
from tests.chaos.load import BOUNDED, Known, Load
from tests.chaos.test_clients import SLOW, slow
from tests.chaos.test_processes import victims
from tests.chaos.test_system import LAYOUTS
from tests.e2e.test_frontends import alive, front_ends
from tests.servers import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

DRAIN, SHUTDOWN = 1, 3
MARGIN_SECONDS = 2.0 if BOUNDED else 120.0


@LAYOUTS
@pytest.mark.parametrize("among", ["honest", *at_length("slow")])
def test_sigterm(tiny_weights: Path, known: list[Known], tmp_path: Path, layout: Sequence[str], among: str) -> None:
    """What is in flight is answered, nothing is answered in part, and the end comes in time; 1 if anybody was cut."""
    limits = ("--drain-seconds", str(DRAIN), "--shutdown-seconds", str(SHUTDOWN))
    with serving(tiny_weights, layout, tmp_path, *limits) as served, Load(served.url, known) as load:
        target = Target(served, known, 2, tmp_path)
        everyone = set(family(served.process.pid))
        waiting = [slow(target, *how) for how in SLOW.values()] if among == "slow" else []
        load.wait_for(20)
        told = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        status = served.end()
        assert time.monotonic() - told < DRAIN + SHUTDOWN + MARGIN_SECONDS
        wait_until(lambda: not alive(everyone))
        for each in waiting:
            each.close()
    load.check("503", "lost", "unconnected")
    assert status == (1 if waiting else 0)
    assert "Traceback" not in served.log
    assert not list(tmp_path.glob("msmlp-*"))


def reload(target: Target, outcome: str = "done") -> None:
    name = f'msmlp_reloads_total{{outcome="{outcome}"}}'
    before = target.served.metric(name)
    target.served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: target.served.metric(name) > before)


@pytest.mark.chaos
def test_reload(serve: Serve) -> None:
    """No request fails, though others hold heads, bodies and answers."""
    target = serve(*SHORT)
    before = front_ends(target.served)
    with target.ordeal(live=True) as load:
        waiting = [slow(target, *how) for how in SLOW.values()]
        for _ in range(5 if BOUNDED else 1):
            reload(target)
            load.wait_for(20)
        for each in waiting:
            each.close()
    assert not before & front_ends(target.served), "all processes are new"


@pytest.mark.chaos
@pytest.mark.parametrize("what", ["front end", "engine", "front ends"])
def test_killed_during_a_reload(serve: Serve, what: str) -> None:
    """Whether the new processes come or the old ones stay: one of them serves."""
    target, killed = serve(*SHORT), set[int]()
    for pause in (0.1, 0.5, 1.0, 2.0):
        with target.ordeal("503", "lost", "cut"):
            target.served.process.send_signal(signal.SIGHUP)
            time.sleep(pause)
            for pid in victims(target, what):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    assert killed
    assert not alive(killed)
