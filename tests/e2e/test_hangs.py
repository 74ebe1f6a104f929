"""What hangs is seen from outside: a stage that never returns, and a stopped process, in every layout."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.harness import at_length
from tests.e2e.test_frontends import front_ends
from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import Served, started
from tests.servers import encoded, wait_until
from tests.service.frontends import hanging

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

IMAGE = encoded(picture(1.0, size=32))
SILENCE = 2.5
"""What is called a hang here."""

SHORT = 3.0
"""Seconds in which whoever waits for a hanging engine with a deadline of 0.2 s is answered, on a busy machine."""


def shown(label: int) -> bytes:
    return encoded(picture(1.0, label=label, size=32))


@contextmanager
def serving(weights: Path, frontends: int, engine: str, *more: str) -> Iterator[Served]:
    limit = () if "silence" in str(more) else (f"silence={SILENCE}",)
    with started(sys.executable, hanging.__file__, str(weights), str(frontends), engine, *limit, *more) as served:
        served.wait_until_ready(frontends)
        yield served


def classify(served: Served, image: bytes = IMAGE, **options: Any) -> tuple[int, float]:
    """→ the status, and how long it took."""
    began = time.monotonic()
    headers = {"Content-Type": "image/png"}
    url = f"{served.url}/classify"
    answer = httpx.post(url, content=image, params=options, headers=headers, timeout=PATIENCE_SECONDS)
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["code"] == "engine_down"
    if answer.status_code == 504:
        assert answer.json()["code"] == "expired"
    return answer.status_code, time.monotonic() - began


def readiness(served: Served) -> httpx.Response:
    return httpx.get(f"{served.url}/readyz", timeout=PATIENCE_SECONDS)


def engine_of(served: Served) -> int:
    """The process that is told about front ends: the one that is no front end's, among the supervisor's children."""
    (engine,) = (pid for pid in front_ends(served) if is_engine(pid))
    return engine


def is_engine(pid: int) -> bool:
    """It has its engine's memory, and no web package."""
    return "uvloop" not in (maps := Path(f"/proc/{pid}/maps").read_text()) and "memfd:msmlp" in maps


@pytest.mark.parametrize("frontends", [1, 2])
def test_a_stopped_engine_process_is_seen_and_replaced(tiny_weights: Path, frontends: int) -> None:
    with serving(tiny_weights, frontends, "process") as served:
        assert classify(served)[0] == 200
        engine = engine_of(served)
        os.kill(engine, signal.SIGSTOP)
        assert classify(served, deadline_ms=200)[0] == 504, "before anybody calls it a hang"
        assert classify(served)[0] == 503, "whoever has no deadline waits until then"
        wait_until(lambda: readiness(served).status_code == 503)
        assert "the engine is down" in readiness(served).json()["detail"]
        assert served.metric("msmlp_engine_up") == 0
        # The engine's host called it a hang; the front ends count by their own looks, until another engine is ready.
        wait_until(lambda: served.metric("msmlp_engine_heartbeat_age_seconds") > SILENCE)
        # The other front end may be ready sooner, or may not have noticed yet.
        wait_until(lambda: classify(served)[0] == 200)
        assert served.metric("msmlp_engine_restarts_total") == 1
        assert served.metric("msmlp_inflight_images") == 0
        assert served.metric("msmlp_deadline_total") == 1
        assert not Path(f"/proc/{engine}").exists()
        assert f"the engine's process did not respond for {SILENCE} s" in served.log
        assert "Traceback" not in served.log


def test_one_of_two_engines_that_hangs_leaves_the_requests_to_the_other(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "process", "devices=cpu,cpu") as served:
        wait_until(lambda: served.metric("msmlp_capacity_images") == 64)
        os.kill(min(pid for pid in front_ends(served) if is_engine(pid)), signal.SIGSTOP)
        wait_until(lambda: served.metric("msmlp_capacity_images") == 32)
        assert [classify(served)[0] for _ in range(4)] == [200] * 4
        assert readiness(served).status_code == 200
        wait_until(lambda: served.metric("msmlp_capacity_images") == 64)
        assert served.metric("msmlp_engine_restarts_total") == 1, served.log


@pytest.mark.chaos
def test_with_a_deadline_nobody_waits_longer_for_an_engine_that_hangs(tiny_weights: Path) -> None:
    with serving(tiny_weights, 2, "process", "silence=5") as served:
        stopped = time.monotonic()
        os.kill(engine_of(served), signal.SIGSTOP)
        while time.monotonic() - stopped < 4:
            status, seconds = classify(served, deadline_ms=200)
            assert (status, seconds < SHORT) == (504, True)
        status, _ = classify(served)
        assert status == 503
        assert time.monotonic() - stopped < 10
        wait_until(lambda: readiness(served).status_code == 200)
        assert time.monotonic() - stopped < 20


def test_a_stage_that_never_returns_gets_a_new_process(tiny_weights: Path) -> None:
    with serving(tiny_weights, 2, "process") as served:
        assert classify(served, shown(hanging.HANGS))[0] == 503
        # The other front end may be ready sooner, or may not have noticed yet.
        wait_until(lambda: classify(served)[0] == 200)
        assert served.metric("msmlp_engine_restarts_total") == 1


@pytest.mark.system  # it takes ten seconds or more
def test_a_slow_stage_is_no_hang(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "process") as served:
        for _ in range(4):
            assert classify(served, shown(hanging.SLOW))[0] == 200
        assert served.metric("msmlp_engine_restarts_total") == 0


@pytest.mark.system  # it takes ten seconds or more
@pytest.mark.parametrize("engine", ["inline", *at_length("process", "thread")])
def test_a_service_that_was_stopped_as_a_whole_goes_on(tiny_weights: Path, engine: str) -> None:
    with serving(tiny_weights, 2, engine) as served:
        everyone = [served.process.pid, *front_ends(served)]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * SILENCE)
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        for _ in range(20):
            assert classify(served)[0] == 200
            time.sleep(0.1)
        assert front_ends(served) == set(everyone[1:])
        assert served.metric("msmlp_brownout_level") == 0


def test_a_thread_that_hangs_has_its_front_end_replaced(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "thread") as served:
        assert classify(served, shown(hanging.HANGS), deadline_ms=200)[0] == 504
        served.wait_for(r"front end 0 died: the engine's thread has not responded for 2\.\d s")
        wait_until(lambda: served.metric("msmlp_frontend_restarts_total") == 1)
        wait_until(lambda: classify(served)[0] == 200)
        assert "Traceback" not in served.log


@pytest.mark.system  # it takes ten seconds or more
def test_a_thread_that_hangs_in_one_of_several_front_ends_has_it_replaced(tiny_weights: Path) -> None:
    with serving(tiny_weights, 2, "thread") as served:
        assert classify(served, shown(hanging.HANGS))[0] == 503
        assert classify(served)[0] == 200, "the other"
        wait_until(lambda: served.metric("msmlp_frontend_restarts_total") == 1)
        wait_until(lambda: served.metric("msmlp_frontends_ready") == 2)


def test_an_event_loop_that_hangs_is_replaced_and_the_log_says_where_it_was(tiny_weights: Path) -> None:
    with serving(tiny_weights, 1, "inline") as served:
        with pytest.raises(httpx.HTTPError):
            classify(served, shown(hanging.HANGS))
        assert "front end 0 does not respond" in served.log
        assert "in collect" in served.log, "where it was"
        wait_until(lambda: classify(served)[0] == 200)
        assert served.metric("msmlp_frontend_restarts_total") == 1


@pytest.mark.parametrize("engine", ["process", *at_length("thread", "inline")])
def test_scores_that_are_no_numbers_are_answered_503_and_at_last_end_the_engine(
    tiny_weights: Path, engine: str
) -> None:
    with serving(tiny_weights, 1, engine) as served:
        for number in range(1, 5):
            assert classify(served, shown(hanging.INVALID))[0] == 503
            assert served.metric("msmlp_invalid_scores_total") == number
        assert classify(served)[0] == 200, "a picture that has no scores ends no engine"
        assert served.log.count("scores that are not numbers") == 1
        metrics = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
        assert not re.findall(r"^msmlp_(?!shadow)\w*(?:sum|total)\S* NaN$", metrics, re.MULTILINE)
        assert all(classify(served, shown(hanging.BREAKS))[0] == 503 for _ in range(3))
        served.wait_for("not even for a black image")
        wait_until(lambda: readiness(served).status_code == 200)
        assert classify(served)[0] == 200
