"""Traces of requests to a real server on a fake backend, read from memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import SpanKind, StatusCode

from msmlp.service.service import Service
from msmlp.service.telemetry.traces import Traces
from tests.fakes import FakeBackend, Pixels, picture
from tests.servers import encoded, fake_backend, fake_service, serving

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A running service, its backend, and the spans that it has made since last asked."""

    def __init__(self, client: httpx.Client, service: Service, backend: FakeBackend, memory: InMemorySpanExporter):
        self.client, self.service, self.backend, self._memory = client, service, backend, memory

    def classify(self, *pictures: Pixels, headers: dict[str, str] | None = None, **options: object) -> httpx.Response:
        files = [("images", encoded(each)) for each in pictures]
        params: dict[str, Any] = {"thresholds": "0.5,0.5", **options}
        return self.client.post("/classify", files=files, params=params, headers=headers)

    def spans(self) -> dict[str, ReadableSpan]:
        found = self._memory.get_finished_spans()
        self._memory.clear()
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found)
        return by_name


@pytest.fixture(scope="module")
def traced(tiny_weights: Path) -> Iterator[Traced]:
    memory, backend = InMemorySpanExporter(), fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    provider = TracerProvider(sampler=DEFAULT_ON)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    service.records.observers.append(Traces(provider, service.facts.model).ended)
    with serving(service) as client:
        yield Traced(client, service, backend, memory)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_an_image_has_a_span_for_every_stage_it_passed(traced: Traced) -> None:
    answer = traced.classify(picture(0.1, 0.9, size=32), headers={"X-Request-ID": "mine"})
    assert answer.json()["results"][0]["exit"] == 2
    spans = traced.spans()
    assert set(spans) == {"POST /classify", "decode", "stage 1", "stage 2"}
    request = spans.pop("POST /classify")
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert request.status.status_code is StatusCode.UNSET
    model = traced.service.facts.model
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "msmlp.request_id": "mine",
        "msmlp.status": 200,
        "msmlp.images": 1,
        "msmlp.operating_point.name": "",
        "msmlp.operating_point.source": "request",
        "msmlp.gflops": traced.service.facts.gflops[1],
        "msmlp.model.name": model["name"],
        "msmlp.model.version": model["version"],
    }
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id


def test_spans_lie_in_their_order_within_the_request(traced: Traced) -> None:
    answer = traced.classify(picture(0.1, 0.2, 0.3, size=32))
    spans = traced.spans()
    begun, over = times(spans["POST /classify"])
    edges = [edge for name in ("decode", "stage 1", "stage 2", "stage 3") for edge in times(spans[name])]
    assert [begun, *edges] == sorted([begun, *edges])
    # The engine hands an answer over after its batch, but reads its clock before that.
    assert edges[-1] <= over
    stages = answer.json()["results"][0]["stages"]
    for stage, span in zip(stages, (spans["stage 1"], spans["stage 2"], spans["stage 3"]), strict=True):
        told = attributes(span)
        assert told["msmlp.queue_ms"] == pytest.approx(stage["queue_ms"], abs=2e-3)
        assert told["msmlp.compute_ms"] == pytest.approx(stage["compute_ms"], abs=2e-3)
        start, end = times(span)
        assert (end - start) / 1e6 == pytest.approx(stage["queue_ms"] + stage["compute_ms"], abs=5e-3)


def test_a_stage_span_counts_the_images_that_came_and_left(traced: Traced) -> None:
    pictures = [picture(0.9, size=32)] * 3 + [picture(0.1, 0.9, size=32)] * 2 + [picture(0.1, 0.1, 0.1, size=32)]
    assert traced.classify(*pictures).status_code == 200
    spans = traced.spans()
    counted = [attributes(spans[f"stage {k}"]) for k in (1, 2, 3)]
    assert [told["msmlp.images"] for told in counted] == [6, 3, 1]
    assert [told["msmlp.exited"] for told in counted] == [3, 2, 1]
    assert [told["msmlp.batch_size"] for told in counted] == [6, 3, 1]
    assert [told["msmlp.stage"] for told in counted] == [1, 2, 3]


def test_a_stream_is_traced_when_it_has_ended(traced: Traced) -> None:
    pictures = [picture(0.9, size=32), picture(0.1, 0.1, 0.1, size=32)]
    answer = traced.classify(*pictures, stream="true")
    assert len(answer.text.splitlines()) == 4
    spans = traced.spans()
    assert [attributes(spans[f"stage {k}"])["msmlp.images"] for k in (1, 2, 3)] == [2, 1, 1]
    assert attributes(spans["POST /classify"])["msmlp.images"] == 2


def test_the_callers_trace_goes_on(traced: Traced) -> None:
    trace, parent = PARENT
    assert traced.classify(picture(0.9, size=32), headers={"traceparent": f"00-{trace}-{parent}-01"}).status_code == 200
    request = traced.spans()["POST /classify"]
    assert f"{request.context.trace_id:032x}" == trace
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == parent


def test_what_the_caller_does_not_sample_is_not_traced(traced: Traced) -> None:
    trace, parent = PARENT
    assert traced.classify(picture(0.9, size=32), headers={"traceparent": f"00-{trace}-{parent}-00"}).status_code == 200
    assert not traced.spans()


def test_a_sampler_may_refuse(tiny_weights: Path) -> None:
    memory = InMemorySpanExporter()
    service = fake_service(tiny_weights, fake_backend)
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    service.records.observers.append(Traces(provider, service.facts.model).ended)
    with serving(service) as client:
        files = [("images", encoded(picture(0.9, size=32)))]
        assert client.post("/classify", files=files).status_code == 200
    assert not memory.get_finished_spans()


@pytest.mark.parametrize("nonsense", ["", "00-zz-1-01", "x" * 1000, f"00-{'0' * 32}-{'0' * 16}-01"])
def test_a_parent_that_is_none_begins_a_new_trace(traced: Traced, nonsense: str) -> None:
    assert traced.classify(picture(0.9, size=32), headers={"traceparent": nonsense}).status_code == 200
    assert traced.spans()["POST /classify"].parent is None


def test_the_open_inference_protocol_is_traced_too(traced: Traced) -> None:
    pixels = picture(0.9, size=32)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": pixels.ravel().tolist()}
    assert traced.client.post("/v2/models/msmlp/infer", json={"inputs": [tensor]}).status_code == 200
    assert {"POST /v2/models/{name}/infer", "decode", "stage 1"} <= set(traced.spans())


def test_what_is_refused_has_no_stages(traced: Traced) -> None:
    assert traced.client.post("/classify", content=b"x", headers={"Content-Type": "image/png"}).status_code == 422
    spans = traced.spans()
    assert set(spans) == {"POST /classify", "decode"}
    assert attributes(spans["POST /classify"])["http.response.status_code"] == 422
    assert spans["POST /classify"].status.status_code is StatusCode.UNSET


def test_the_services_own_failure_is_an_error(traced: Traced) -> None:
    def fail(stage: int, pixels: Pixels) -> None:
        raise RuntimeError("a broken device")

    traced.backend.fail = fail
    try:
        assert traced.classify(picture(0.9, size=32)).status_code == 503
    finally:
        traced.backend.fail = lambda stage, pixels: None
    spans = traced.spans()
    assert spans["POST /classify"].status.status_code is StatusCode.ERROR
    assert set(spans) == {"POST /classify", "decode"}


def test_probes_and_pages_are_not_traced(traced: Traced) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/model", "/", "/nowhere", "/v2/health/ready", "/classify"):
        traced.client.get(path)
    assert not traced.spans()
