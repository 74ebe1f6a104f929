"""`deadline_ms`, brown-out and `degrade` over a real socket."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.service.engine import async_engine, overload
from msmlp.service.engine import core as loop
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.http.schemas import Answer
from msmlp.service.logs import sane_id
from msmlp.service.service import Service
from tests.fakes import PATIENCE_SECONDS, Clock, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, serving, wait_until

FOR_EVER = 1e9  # milliseconds, the longest deadline allowed
THRESHOLDS = {"thresholds": "0.5,0.5"}


def post(client: httpx.Client, *images: tuple[float, ...], **options: Any) -> httpx.Response:
    files = [("images", encoded(picture(*scores, size=32))) for scores in images]
    return client.post("/classify", files=files, params={**THRESHOLDS, **options})


def checked(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    Answer.model_validate(answer.json())
    return answer.json()


def test_when_every_image_has_expired_it_is_504(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        answer = post(client, (1.0,), (0.2,), deadline_ms=0)
        assert (answer.status_code, answer.json()["code"]) == (504, "expired")
        assert answer.headers["Content-Type"] == "application/problem+json"
        # An exit that is demanded outranks the deadline.
        results = checked(post(client, (1.0,), (0.2, 1.0), deadline_ms=0, min_exit=1))["results"]
        assert [(r["exit"], r["reason"]) for r in results] == [(1, "confident"), (1, "deadline")]
        results = checked(post(client, (1.0, 0.2), deadline_ms=0, min_exit=2))["results"]
        assert [(r["exit"], r["reason"]) for r in results] == [(2, "deadline")]
        results = checked(post(client, (0.2, 0.2, 0.4), deadline_ms=FOR_EVER))["results"]
        assert [(r["exit"], r["reason"]) for r in results] == [(3, "final")]


def test_the_margin_kept_is_reported(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        (kept,) = checked(post(client, (1.0,), deadline_ms=60_000))["results"]
        assert kept["deadline_margin_ms"] == pytest.approx(60_000 - kept["latency_ms"], abs=0.01)
        (late,) = checked(post(client, (1.0,), deadline_ms=0, min_exit=1))["results"]
        assert late["deadline_margin_ms"] == pytest.approx(-late["latency_ms"], abs=0.01)
        (none,) = checked(post(client, (1.0,)))["results"]
        assert "deadline_margin_ms" not in none
        lines = client.post(
            "/classify",
            files=[("images", encoded(picture(0.2, 1.0, size=32)))],
            params={**THRESHOLDS, "deadline_ms": 60_000, "stream": True},
        ).text.splitlines()
        margins = [json.loads(line)["deadline_margin_ms"] for line in lines]
        assert len(margins) == 2
        assert 60_000 > margins[0] >= margins[1] > 0


def test_when_some_have_expired_their_label_is_null(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image is on the device when the deadline passes, the other still waits."""
    clock, backend = Clock(), fake_backend(max_batch=1)
    monkeypatch.setattr(loop, "time", clock)
    with serving(fake_service(tiny_weights, lambda: backend)) as client, ThreadPoolExecutor(1) as pool:
        with backend.gate.held():
            asked = pool.submit(post, client, (0.4,), (0.4,), deadline_ms=FOR_EVER)
            backend.gate.wait_until_reached()
            clock.ahead = 2 * FOR_EVER / 1e3
        document = checked(asked.result())
    reached, expired = document["results"]
    assert (reached["index"], reached["exit"], reached["reason"]) == (0, 1, "deadline")
    assert reached["label"] is not None
    assert (expired["index"], expired["exit"], expired["reason"]) == (1, None, "expired")
    assert expired["label"] is expired["class_id"] is expired["confidence"] is expired["score"] is None
    assert (expired["top_k"], expired["stages"], expired["gflops"]) == ([], [], 0.0)


def test_the_time_a_body_and_its_decoding_take_is_the_deadlines(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrival is when the first byte came: a deadline that passes before the engine is reached has passed."""
    service = fake_service(tiny_weights, fake_backend)
    image, arrived = encoded(picture(1.0, size=32)), threading.Event()

    def told(given: Any) -> str:
        arrived.set()
        return sane_id(given)

    monkeypatch.setattr("msmlp.service.http.middleware.sane_id", told)

    def slowly() -> Any:
        yield image[:10]
        assert arrived.wait(PATIENCE_SECONDS)
        time.sleep(0.06)
        yield image[10:]

    with serving(service) as client:
        options = {"params": {**THRESHOLDS, "deadline_ms": 50}, "headers": {"Content-Type": "image/png"}}
        answer = client.post("/classify", content=slowly(), **options)
        assert (answer.status_code, answer.json()["code"]) == (504, "expired")


def test_while_the_device_hangs_a_deadline_is_kept(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for longer; what has been answered is kept, and an exit that is demanded is waited for."""
    monkeypatch.setattr(async_engine, "LATE", 0.0)
    monkeypatch.setattr(loop, "longest_silence", lambda *_: FOR_EVER)
    backend = fake_backend(max_batch=1)
    step = threading.Semaphore(1)
    with serving(fake_service(tiny_weights, lambda: backend)) as client, ThreadPoolExecutor(1) as pool:
        backend.fail = lambda stage, pixels: (step.acquire(timeout=PATIENCE_SECONDS), None)[1]
        reached, expired = checked(post(client, (1.0,), (1.0,), deadline_ms=100))["results"]
        assert (reached["exit"], reached["reason"]) == (1, "confident")
        assert (expired["index"], expired["exit"], expired["reason"]) == (1, None, "expired")
        for form in ({}, {"stream": True}):
            answer = post(client, (1.0,), deadline_ms=10, **form)
            assert (answer.status_code, answer.json()["code"]) == (504, "expired")
        demanded = pool.submit(post, client, (1.0,), deadline_ms=10, min_exit=1)
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
        other = client.post("/v2/models/msmlp/infer", json={"inputs": [tensor], "parameters": {"deadline_ms": 10}})
        assert (other.status_code, "deadline" in other.json()["error"]) == (504, True)
        step.release(1000)
        assert [each["reason"] for each in checked(demanded.result())["results"]] == ["confident"]
        assert client.get("/readyz").status_code == 200
        text = client.get("/metrics").text
    assert 'msmlp_deadline_total{outcome="expired"} 4.0' in text
    assert "msmlp_inflight_images 0.0" in text


@pytest.fixture
def browned(tiny_weights: Path) -> Any:
    """A service whose brown-out level is set by hand."""
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        yield client, service


def point(answer: httpx.Response) -> tuple[str, str, bool]:
    document = checked(answer)
    (degraded,) = {result["degraded"] for result in document["results"]}
    return document["operating_point"]["name"], document["operating_point"]["source"], degraded


def test_brown_out_takes_the_cheapest_point_that_is_allowed_and_says_so(
    browned: tuple[httpx.Client, Service],
) -> None:
    client, service = browned

    def ask(**options: Any) -> httpx.Response:
        return client.post("/classify", files=[("images", encoded(picture(1.0, size=32)))], params=options)

    assert point(ask()) == ("balanced", "default", False)
    service.engine.brownout.level = LEVELS
    assert point(ask(policy="accurate")) == ("accurate", "request", False), "it finds the engine empty"
    service.engine.admission.release(-1)
    degraded = {"policy": "accurate"}
    assert point(ask()) == point(ask(**degraded)) == ("fast", "brownout", True)
    assert point(ask(**degraded, degrade="true")) == point(ask(**degraded, accuracy_floor=0.6))
    assert point(ask(**degraded, degrade="false")) == ("accurate", "request", False)
    assert point(ask(**degraded, accuracy_floor=0.61)) == ("balanced", "brownout", True)
    assert point(ask(**degraded, accuracy_floor=0.71)) == ("accurate", "request", False)
    assert point(ask(min_accuracy=0.65)) == ("balanced", "request", False)
    assert point(ask(budget_gflops=99)) == ("fast", "brownout", True)
    assert point(ask(accuracy_floor=0.8)) == ("balanced", "default", False), "below it already: it stays"
    explicit = checked(ask(thresholds="0.9,0.8"))
    assert explicit["operating_point"]["thresholds"] == [0.9, 0.8]
    assert explicit["operating_point"]["source"] == "request"
    assert explicit["results"][0]["degraded"] is False
    beyond = ask(accuracy_floor=1)
    assert (beyond.status_code, beyond.json()["code"]) == (422, "bad_option")
    assert "accuracy_floor: no operating point is expected to reach it; expected 0 to 0.8000" in beyond.json()["detail"]
    both = ask(accuracy_floor=0.1, thresholds="0.5,0.5")
    assert (both.status_code, both.json()["code"]) == (422, "bad_option")


def test_the_level_holds_for_all_of_a_request(tiny_weights: Path) -> None:
    """It is read when the request is admitted, and what happens later changes nothing."""
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    submissions = Submissions(service.engine)
    with serving(service) as client, ThreadPoolExecutor(1) as pool:
        with backend.gate.held():
            files = [("images", encoded(picture(1.0, size=32)))]
            asked = pool.submit(client.post, "/classify", files=files, params={"policy": "accurate"})
            submissions.wait_for(1)
            service.engine.brownout.level = LEVELS
        assert point(asked.result()) == ("accurate", "request", False)


def test_a_held_device_is_overload_and_browns_out_what_comes_next(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: images wait, the level rises, a request is degraded; the gauges say so."""
    for module in (async_engine, overload):
        monkeypatch.setattr(module, "FROZEN_SECONDS", math.inf)  # a busy machine may stop for a second
    backend = fake_backend(max_batch=1)
    service = fake_service(tiny_weights, lambda: backend, brownout_ms=20)
    submissions = Submissions(service.engine)
    with serving(service) as client, ThreadPoolExecutor(2) as pool:
        with backend.gate.held():
            waiting = pool.submit(post, client, (1.0,), (1.0,), (1.0,))
            submissions.wait_for(1)
            backend.gate.wait_until_reached()
            wait_until(lambda: service.engine.brownout.level == LEVELS)
            degraded = pool.submit(
                client.post,
                "/classify",
                files=[("images", encoded(picture(1.0, size=32)))],
                params={"policy": "accurate"},
            )
            submissions.wait_for(1)
            metrics = client.get("/metrics").text
        assert point(degraded.result())[1:] == ("brownout", True)
        checked(waiting.result())
    assert f"msmlp_brownout_level {float(LEVELS)}" in metrics
    oldest = next(line for line in metrics.splitlines() if line.startswith('msmlp_oldest_wait_seconds{stage="1"}'))
    assert float(oldest.split()[-1]) > 0
