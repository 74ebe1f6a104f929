"""Calls over gRPC in traces and in the log."""

import logging
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from msmlp.service.telemetry.access_log import log_access
from msmlp.service.telemetry.traces import Traces
from tests.fakes import pictures
from tests.service.grpc.conftest import Serve, infer_request

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_call_goes_on_with_its_callers_trace(serve: Serve) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with serve() as served:
        served.service.records.observers.append(Traces(provider, served.service.facts.model).ended)
        request = infer_request(pictures(2, 0.1, 0.9, size=32), "mine", thresholds="0.5,0.5")
        served.call("ModelInfer", request, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01"), ("raw-bin", b"\xff")])
        served.call("ServerLive")
    spans = {span.name: span for span in memory.get_finished_spans()}
    assert set(spans) == {"inference.GRPCInferenceService/ModelInfer", "decode", "stage 1", "stage 2"}
    call = spans["inference.GRPCInferenceService/ModelInfer"]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == PARENT
    told = dict(call.attributes or {})
    assert (told["rpc.system"], told["rpc.method"], told["msmlp.request_id"]) == ("grpc", "ModelInfer", "mine")
    assert told["msmlp.status"] == 200
    assert not [name for name in told if name.startswith("http.")]


def test_every_request_of_a_stream_has_its_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "msmlp.access")
    with serve() as served:
        served.service.records.observers.append(log_access)
        requests = [infer_request(pictures(n, 0.9, size=32), f"r-{n}", thresholds="0.5,0.5") for n in (1, 2)]
        assert len(list(served.call.stream(iter(requests)))) == 2
        wrong = infer_request(np.zeros((1, 32, 32, 3), np.uint8), "wrong", policy="best")
        assert served.call.refused("ModelInfer", wrong)[0] == "INVALID_ARGUMENT"
        served.call("ServerReady")
    lines: dict[str, Any] = {line.request_id: line for line in caplog.records if line.name == "msmlp.access"}  # type: ignore[attr-defined]
    assert set(lines) == {"r-1", "r-2", "wrong"}
    assert (lines["r-2"].route, lines["r-2"].images, lines["r-2"].exits) == ("grpc/ModelStreamInfer", 2, {"1": 2})
    assert (lines["wrong"].route, lines["wrong"].status) == ("grpc/ModelInfer", 400)
