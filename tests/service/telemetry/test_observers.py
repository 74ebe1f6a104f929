"""Observers of requests, as the settings say, and the thread they are called on."""

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from msmlp.model.errors import OptionError
from msmlp.service.telemetry import observers
from msmlp.service.telemetry.observers import BackgroundWorker, log_access, trace_factory
from msmlp.service.telemetry.record import RequestRecord
from msmlp.service.telemetry.traces import Traces
from tests.fakes import PATIENCE_SECONDS, picture
from tests.servers import encoded, fake_backend, fake_service, serving, wait_until


def lines_of(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "msmlp.access"]


def test_the_line_names_the_trace(tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "msmlp.access")
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    service = fake_service(tiny_weights, fake_backend, access_log=True)
    service.traces = Traces(provider, service.facts.model)
    with serving(service) as client:
        client.post("/classify", files=[("images", encoded(picture(0.9, size=32)))], params={"thresholds": "0.5,0.5"})
        client.get("/nowhere")
    classified, unknown = lines_of(caplog)
    [request] = [span for span in memory.get_finished_spans() if span.name == "POST /classify"]
    assert classified.trace_id == f"{request.context.trace_id:032x}"
    assert not hasattr(unknown, "trace_id")


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}])
def test_a_request_that_is_not_sampled_names_none(
    tiny_weights: Path, caplog: pytest.LogCaptureFixture, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "msmlp.access")
    if not headers:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    service = fake_service(tiny_weights, fake_backend, access_log=True)
    service.traces = Traces(TracerProvider(), service.facts.model)
    with serving(service) as client:
        client.post("/classify", files=[("images", encoded(picture(0.9, size=32)))], headers=headers)
    (line,) = lines_of(caplog)
    assert not hasattr(line, "trace_id")


def test_there_is_no_line_unless_asked_for(tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "msmlp.access")
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        client.get("/nowhere")
    assert not lines_of(caplog)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "garbage",
            "OTEL_EXPORTER_OTLP_ENDPOINT: 'garbage' is not an http://",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "grpc://x:4317",
            "'grpc://x:4317' is not an http:// or https:// address",
        ),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1", "--traces: OpenTelemetry refuses a variable OTEL_...: "),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000", "--traces: OpenTelemetry refuses a variable OTEL_...: "),
    ],
)
def test_what_the_library_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionError) as raised:
        trace_factory()
    assert said in str(raised.value)


class Stuck(TracerProvider):
    """Whose collector does not come back until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Event()

    def shutdown(self) -> None:
        self.may_end.wait()


def test_a_collector_that_does_not_respond_is_given_up() -> None:
    stuck = Stuck()
    assert not Traces(stuck, {}).close(0.05)
    stuck.may_end.set()
    assert Traces(stuck, {}).close(0.05)


def test_a_wild_header_is_not_logged(tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = fake_service(tiny_weights, fake_backend)
    service.traces = Traces(TracerProvider(), service.facts.model)
    parent = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    with serving(service) as client:
        for wild in ({"tracestate": "INJECTED evil"}, {"baggage": "a=b," * 5000}, {"traceparent": "INJECTED evil"}):
            files = [("images", encoded(picture(0.9, size=32)))]
            assert client.post("/classify", files=files, headers={**parent, **wild}).status_code == 200
    assert "INJECTED" not in caplog.text
    assert "a=b" not in caplog.text


def record(number: int) -> RequestRecord:
    return RequestRecord(f"r-{number}", 0.0)


def test_the_background_worker_ends_with_its_queue_worked_off_in_order() -> None:
    first: list[str] = []
    second: list[str] = []
    watching = BackgroundWorker(
        [lambda each: first.append(each.request_id), lambda each: second.append(each.request_id)]
    )
    for number in range(100):
        watching.ended(record(number))
    assert watching.close(PATIENCE_SECONDS)
    assert first == second == [f"r-{number}" for number in range(100)]


def test_a_slow_observer_delays_no_request_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observers, "QUEUE_REQUESTS", 3)
    caplog.set_level(logging.WARNING, "msmlp.telemetry")
    may_go, begun = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow(each: RequestRecord) -> None:
        begun.set()
        assert may_go.wait(PATIENCE_SECONDS)
        seen.append(each.request_id)

    watching = BackgroundWorker([slow])
    watching.ended(record(0))
    assert begun.wait(PATIENCE_SECONDS)
    for number in range(1, 8):
        watching.ended(record(number))  # three wait, four are dropped
    assert not watching.close(0.05)
    may_go.set()
    wait_until(lambda: bool(caplog.records))
    assert seen == ["r-0", "r-1", "r-2", "r-3"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["4"]
    assert watching.close(PATIENCE_SECONDS)


# --- the access log --------------------------------------------------------------------------------------------------


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


def test_expired_images_left_at_no_exit(client: httpx.Client, lines: Lines) -> None:
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
