"""`stream=true` over a real socket: one line an image and exit, as it lands."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.service.http.schemas import StreamLine
from msmlp.service.service import Service
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, knock, serving, wait_until

NDJSON = "application/x-ndjson"
EASY, HARD, HARDEST = (1.0,), (0.2, 0.9), (0.2, 0.2, 0.6)


def files(*images: tuple[float, ...]) -> list[tuple[str, bytes]]:
    return [("images", encoded(picture(*scores, size=32))) for scores in images]


OPTIONS = {"stream": "true", "thresholds": "0.5,0.5"}


def read(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == NDJSON
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture(scope="module")
def fake(tiny_weights: Path) -> Iterator[tuple[httpx.Client, Service, FakeBackend]]:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    with serving(service) as client:
        yield client, service, backend


def test_every_exit_of_every_image_is_a_line_and_the_last_is_final(
    fake: tuple[httpx.Client, Service, FakeBackend],
) -> None:
    client, service, _ = fake
    answer = client.post("/classify", files=files(HARDEST, EASY, HARD), params=OPTIONS)
    lines = read(answer)
    for line in lines:
        StreamLine.model_validate(line)
        assert line["request_id"] == answer.headers["X-Request-ID"]
        assert line["gflops"] == service.facts.gflops[line["exit"] - 1]
        assert [stage["stage"] for stage in line["stages"]] == list(range(1, line["exit"] + 1))
        assert ("operating_point" in line) == line["final"]
        assert line["final"] == (line["reason"] != "goes_on")
    told = [(line["index"], line["exit"], line["reason"]) for line in lines]
    assert [line for line in told if line[0] == 0] == [(0, 1, "goes_on"), (0, 2, "goes_on"), (0, 3, "final")]
    assert [line for line in told if line[0] == 1] == [(1, 1, "confident")]
    assert [line for line in told if line[0] == 2] == [(2, 1, "goes_on"), (2, 2, "confident")]
    assert [exit for _, exit, _ in told] == [1, 1, 1, 2, 2, 3]
    assert lines[-1]["operating_point"]["thresholds"] == [0.5, 0.5]


def test_the_final_lines_are_the_answer(client: httpx.Client, digit_files: list[bytes], parting: list[float]) -> None:
    """On the real model."""
    images = [("images", image) for image in digit_files[:64]]
    options = {"thresholds": str(parting)}
    lines = read(client.post("/classify", files=images, params={**options, "stream": "true"}))
    whole = client.post("/classify", files=images, params=options).json()
    final = sorted((line for line in lines if line["final"]), key=lambda line: line["index"])
    assert len(final) == 64
    assert len(lines) == sum(result["exit"] for result in whole["results"])
    for line, result in zip(final, whole["results"], strict=True):
        for field in ("index", "label", "exit", "exits", "reason", "gflops"):
            assert line[field] == result[field]
        assert line["operating_point"] == whole["operating_point"]


def test_lines_come_as_they_land(fake: tuple[httpx.Client, Service, FakeBackend]) -> None:
    """The first line is read while the second stage is held."""
    client, _, backend = fake
    read_first = threading.Event()

    def second_stage_waits(stage: int, pixels: NDArray[np.uint8]) -> None:
        assert stage == 0 or read_first.wait(PATIENCE_SECONDS), "the first line did not come"

    backend.fail = second_stage_waits
    try:
        with client.stream("POST", "/classify", files=files(HARD), params=OPTIONS) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["exit"] == 1
            read_first.set()
            assert json.loads(next(lines))["exit"] == 2
            assert list(lines) == []
    finally:
        read_first.set()
        backend.fail = lambda stage, pixels: None


def test_what_fails_before_the_first_line_has_its_own_status(fake: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, service, _ = fake
    bad = client.post("/classify", files=[("images", b"no picture")], params=OPTIONS)
    assert (bad.status_code, bad.json()["code"]) == (422, "undecodable_image")
    assert bad.json()["errors"][0]["index"] == 0
    costly = client.post("/classify", files=files(EASY), params={"stream": "true", "budget_gflops": 0})
    assert (costly.status_code, costly.json()["code"]) == (422, "bad_option")
    late = client.post("/classify", files=files(EASY), params={**OPTIONS, "deadline_ms": 0})
    assert (late.status_code, late.json()["code"]) == (504, "expired")
    with service.engine.admit(1024):
        shed = client.post("/classify", files=files(EASY), params=OPTIONS)
    assert (shed.status_code, shed.json()["code"]) == (429, "overloaded")
    assert service.engine.admission.inflight == 0


def test_what_fails_later_is_the_last_line(fake: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, service, backend = fake

    def broken(stage: int, pixels: NDArray[np.uint8]) -> None:
        if stage == 1:
            raise ZeroDivisionError("a secret of the device")

    backend.fail = broken
    try:
        answer = client.post("/classify", files=files(HARD, EASY), params=OPTIONS)
    finally:
        backend.fail = lambda stage, pixels: None
    *lines, last = read(answer)
    assert {(line["index"], line["reason"]) for line in lines} == {(0, "goes_on"), (1, "confident")}
    assert (last["code"], last["status"], last["final"]) == ("engine_down", 503, True)
    assert last["request_id"] == answer.headers["X-Request-ID"]
    assert "secret" not in answer.text
    assert service.engine.admission.inflight == 0


@pytest.mark.parametrize("lines_read", [0, 1])
def test_a_client_that_leaves_its_stream_returns_its_permits(
    fake: tuple[httpx.Client, Service, FakeBackend], lines_read: int
) -> None:
    """Before the first line, or while the second stage is held."""
    client, service, backend = fake
    gone, submissions = threading.Event(), Submissions(service.engine)

    def waits(stage: int, pixels: NDArray[np.uint8]) -> None:
        assert stage < lines_read or gone.wait(PATIENCE_SECONDS)

    backend.fail = waits
    try:
        with knock(client, files=files(HARDEST, HARDEST), params=OPTIONS) as leaving:
            submissions.wait_for(1)
            if lines_read:
                assert b"HTTP/1.1 200" in leaving.recv(2**16)
        wait_until(lambda: service.engine.admission.inflight == 0)  # while the device is held
    finally:
        gone.set()
        backend.fail = lambda stage, pixels: None
    wait_until(lambda: service.engine.admission.inflight == backend.taken == 0)
    assert client.post("/classify", files=files(EASY), params=OPTIONS).status_code == 200
