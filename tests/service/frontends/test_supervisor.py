"""A supervisor whose front ends cannot serve; what it does with those that can is in tests/e2e/test_frontends.py."""

import subprocess
import sys
from pathlib import Path

from msmlp.service.frontends.place import ATTEMPTS
from tests.fakes import PATIENCE_SECONDS
from tests.processes import environment
from tests.service.frontends import programs


def run(weights: Path, what: str, engine: str = "inline") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, programs.__file__, str(weights), what, engine],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def test_when_no_front_end_becomes_ready_the_service_ends_as_one_process_does(tiny_weights: Path) -> None:
    done = run(tiny_weights, "broken")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "msmlp: the engine stopped: the device is broken"
    for index in (0, 1):
        assert done.stderr.count(f"front end {index} died: the device is broken") == ATTEMPTS
    assert "Traceback" not in done.stderr


def test_when_no_shared_engine_is_left_the_service_ends_as_one_process_does(tiny_weights: Path) -> None:
    done = run(tiny_weights, "broken", "process")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "msmlp: the engine stopped: the device is broken"
    assert "Traceback" not in done.stderr


def test_a_mistake_that_only_a_front_end_finds_is_the_callers_too(tiny_weights: Path) -> None:
    done = run(tiny_weights, "refused")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "msmlp: --weights: they have gone"
    assert "Traceback" not in done.stderr
