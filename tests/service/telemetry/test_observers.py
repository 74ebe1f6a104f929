"""Observers of requests, as the settings say, and the thread they are called on."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from msmlp.model.errors import OptionError
from msmlp.service.telemetry import observers
from msmlp.service.telemetry.observers import BackgroundWorker, trace_provider
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
        trace_provider()
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


def test_an_observer_that_fails_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(each: RequestRecord) -> None:
        raise ValueError("broken")

    watching = BackgroundWorker([fail, lambda each: seen.append(each.request_id)])
    watching.ended(record(0))
    assert watching.close(PATIENCE_SECONDS)
    assert seen == ["r-0"]
    assert "an observer of requests failed" in caplog.text
