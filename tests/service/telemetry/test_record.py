"""What is known of requests at their end, whatever end they come to."""

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from msmlp.service.logs import request_id_of_this_task
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord, RequestRecords
from tests.fakes import PATIENCE_SECONDS, FakeBackend, Pixels, picture
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until


@pytest.fixture
def running(tiny_weights: Path) -> Iterator[tuple[httpx.Client, Service, FakeBackend, list[RequestRecord]]]:
    backend = fake_backend()
    ended: list[RequestRecord] = []
    service = fake_service(tiny_weights, lambda: backend)
    service.records.observers.append(ended.append)
    with serving(service) as client:
        yield client, service, backend, ended


def files(*pictures: Pixels) -> list[tuple[str, bytes]]:
    return [("images", encoded(each)) for each in pictures]


def test_an_observer_that_fails_is_logged_and_spoils_neither_the_answer_nor_the_others(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client, service, _, ended = running

    def fail(record: RequestRecord) -> None:
        raise ValueError("broken")

    service.records.observers.insert(0, fail)
    assert client.get("/livez").status_code == 200
    assert [record.route for record in ended] == ["/livez"]
    assert "an observer of requests failed" in caplog.text


def test_each_request_is_reported_once_with_its_own_id(running: Any) -> None:
    client, _, _, ended = running
    for number in range(3):
        client.get("/livez", headers={"X-Request-ID": f"r-{number}"})
    assert [record.request_id for record in ended] == ["r-0", "r-1", "r-2"]
    assert request_id_of_this_task.get() == ""


def test_a_client_that_leaves_its_stream_was_not_answered(running: Any) -> None:
    client, service, backend, ended = running
    go_on = threading.Event()

    def hold_second_stage(stage: int, pixels: Pixels) -> None:
        assert stage == 0 or go_on.wait(PATIENCE_SECONDS)

    backend.fail = hold_second_stage
    pictures = files(picture(0.9, size=32), *[picture(0.1, 0.1, 0.1, size=32)] * 3)
    with knock(client, files=pictures, params={"thresholds": "0.5,0.5", "stream": "true"}) as connection:
        connection.recv(65536)
    wait_until(lambda: bool(ended))
    go_on.set()
    wait_until(lambda: service.engine.admission.inflight == 0)
    (record,) = ended
    assert record.status == 499
    assert (record.images, record.answered) == (4, 1)
    assert (service.statistics.succeeded, service.statistics.failed) == (0, 1)


def test_a_stream_whose_device_fails_has_failed(running: Any) -> None:
    client, service, backend, ended = running

    def fail(stage: int, pixels: Pixels) -> None:
        if stage == 1:
            raise RuntimeError("a broken device")

    backend.fail = fail
    pictures = files(picture(0.9, size=32), picture(0.1, 0.1, 0.1, size=32))
    answer = client.post("/classify", files=pictures, params={"thresholds": "0.5,0.5", "stream": "true"})
    assert answer.status_code == 200
    assert '"status":503' in answer.text.splitlines()[-1]
    (record,) = ended
    assert (record.status, record.images, record.answered) == (503, 2, 1)
    assert (service.statistics.succeeded, service.statistics.failed) == (0, 1)


def test_half_an_upload_has_an_end_too(running: Any) -> None:
    client, _, _, ended = running
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc"
        )
        assert client.get("/livez").status_code == 200
    wait_until(lambda: len(ended) == 2)
    assert [(record.route, record.status) for record in ended] == [("/livez", 200), ("/classify", 499)]


class Ids(logging.Handler):
    """Whose request a record was logged under."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(request_id_of_this_task.get())


def test_what_is_no_request_is_not_logged_under_the_one_before(running: Any) -> None:
    client, _, _, _ = running
    ids, log = Ids(), logging.getLogger("msmlp.http")
    log.addHandler(ids)
    log.setLevel(logging.INFO)
    try:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\n\r\nno request\r\n\r\n")
            received = b""
            while more := connection.recv(65536):
                received += more
    finally:
        log.removeHandler(ids)
        log.setLevel(logging.NOTSET)
    assert received.count(b"HTTP/1.1 ") == 2
    assert ids.seen
    assert set(ids.seen) == {""}


def test_nothing_of_an_answer_is_kept_but_what_observers_read(running: Any) -> None:
    client, _, _, ended = running
    client.post("/classify", files=files(picture(0.9, size=32)), params={"thresholds": "0.5,0.5"})
    (landed,) = ended[0].landed
    assert set(landed._fields) == {"exit", "history"}
    assert landed.exit.dtype == np.int64


def test_whatever_breaks_off_has_an_end() -> None:
    ended: list[RequestRecord] = []
    records = RequestRecords(ended.append)
    record = RequestRecord("an-id", 0.0)

    def broken_off() -> None:
        with records.open(record):
            assert request_id_of_this_task.get() == "an-id"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert ended == [record]
    assert record.seconds > 0
