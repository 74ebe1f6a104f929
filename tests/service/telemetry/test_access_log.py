"""The line that every request leaves in the log."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.service.telemetry.access_log import log_access
from tests.fakes import picture
from tests.servers import encoded, fake_backend, fake_service, serving


@pytest.fixture(scope="module")
def client(tiny_weights: Path) -> Iterator[httpx.Client]:
    service = fake_service(tiny_weights, fake_backend)
    service.records.observers.append(log_access)  # without the thread of its own that it has otherwise
    with serving(service) as client:
        yield client


class Lines(logging.Handler):
    """Keeps the records of the access log alone: clients log too."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __iter__(self) -> Iterator[logging.LogRecord]:
        return iter(self.records)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    caplog.set_level(logging.INFO, "msmlp.access")
    lines, log = Lines(), logging.getLogger("msmlp.access")
    log.addHandler(lines)
    yield lines
    log.removeHandler(lines)


def fields(record: logging.LogRecord, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name, None) for name in names}


def test_a_classification_says_where_its_images_left_and_what_they_cost(client: httpx.Client, lines: Lines) -> None:
    files = [("images", encoded(picture(*scores, size=32))) for scores in ((0.9,), (0.9,), (0.1, 0.1, 0.2))]
    answer = client.post("/classify", files=files, params={"thresholds": "0.5,0.5"}, headers={"X-Request-ID": "mine"})
    (line,) = lines
    spent = sum(result["gflops"] for result in answer.json()["results"])
    assert fields(line, "request_id", "method", "route", "status", "images", "exits", "operating_point", "source") == {
        "request_id": "mine",
        "method": "POST",
        "route": "/classify",
        "status": 200,
        "images": 3,
        "exits": {"1": 2, "3": 1},
        "operating_point": None,
        "source": "request",
    }
    told = fields(line, "duration_ms", "gflops")
    assert told["gflops"] == pytest.approx(spent)
    assert told["duration_ms"] >= answer.json()["latency_ms"]
    text = line.getMessage()
    assert text.startswith("POST /classify 200 in ")
    assert text.endswith(f" ms: 3 images, 2 at exit 1, 1 at exit 3, {spent:.4g} GFLOPs")


def test_a_default_says_which_operating_point_it_took(client: httpx.Client, lines: Lines) -> None:
    client.post("/classify", files=[("images", encoded(picture(1.0, 1.0, 1.0, size=32)))])
    (line,) = lines
    assert fields(line, "operating_point", "source") == {"operating_point": "balanced", "source": "default"}


def test_a_stream_has_one_line(client: httpx.Client, lines: Lines) -> None:
    files = [("images", encoded(picture(*scores, size=32))) for scores in ((0.9,), (0.1, 0.1, 0.2))]
    assert client.post("/classify", files=files, params={"thresholds": "0.5,0.5", "stream": "true"}).status_code == 200
    (line,) = lines
    assert fields(line, "status", "images", "exits") == {"status": 200, "images": 2, "exits": {"1": 1, "3": 1}}


def test_who_expired_left_at_none(client: httpx.Client, lines: Lines) -> None:
    files = [("images", encoded(picture(0.9, size=32)))]
    assert client.post("/classify", files=files, params={"deadline_ms": "0.0001"}).status_code == 504
    (line,) = lines
    assert fields(line, "status", "exits", "gflops") == {"status": 504, "exits": {"none": 1}, "gflops": 0}


def test_a_refusal_has_its_line_and_nothing_of_the_client_but_a_sane_id(client: httpx.Client, lines: Lines) -> None:
    client.post("/classify", content=b"x", headers={"Content-Type": "image/png", "X-Request-ID": "a b"})
    client.request("LEVEL.ERROR_admin", "/nowhere")
    refused, unknown = lines
    assert fields(refused, "route", "status", "exits") == {"route": "/classify", "status": 422, "exits": {}}
    assert fields(unknown, "method", "route", "status") == {"method": "other", "route": "other", "status": 404}
    assert "a b" not in vars(refused).values()
    assert not {"nowhere", "admin"} & set(re.findall(r"\w+", unknown.getMessage()))


def test_probes_and_scrapes_are_for_debugging(
    client: httpx.Client, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    probes = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/msmlp/ready")
    for path in probes:
        assert client.get(path).status_code == 200
    assert not lines.records
    caplog.set_level(logging.DEBUG, "msmlp.access")
    for path in probes:
        client.get(path)
    assert len(lines.records) == len(probes)
