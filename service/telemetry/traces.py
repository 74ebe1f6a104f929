"""Requests as OpenTelemetry traces: one span per request, and under it one for decoding and one for every stage.

Spans are made when a request has ended, from the times that were recorded.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from msmlp.model.errors import OptionError
from msmlp.service.telemetry.record import Landed, RequestRecord

RPC_SERVICE = "inference.GRPCInferenceService"

FAILED = 500
"""Statuses from here on are the service's own errors; lower ones leave the span's status unset."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

# It would log a warning with what a client writes into its header.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)


class Traces:
    """Of a service that serves `model` (name and version), sent by `provider`."""

    def __init__(self, provider: TracerProvider, model: dict[str, str]) -> None:
        self._provider, self._tracer = provider, provider.get_tracer("msmlp")
        self._model = {f"msmlp.model.{key}": value for key, value in model.items()}
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: RequestRecord) -> None:
        if not record.inference:
            return
        since = time.time_ns() - time.monotonic_ns()  # monotonic clock to wall clock

        def at(seconds: float) -> int:
            return since + round(1e9 * seconds)

        parent = self._propagator.extract(record.headers())
        request = self._tracer.start_span(_name(record), parent, SpanKind.SERVER, start_time=at(record.arrival))
        if not request.is_recording():
            return
        record.trace_id = format_trace_id(request.get_span_context().trace_id)
        request.set_attributes({**_of_request(record), **self._model})
        if record.status >= FAILED:
            request.set_status(Status(StatusCode.ERROR))
        began, decoded = record.decoding
        if decoded:
            self._child(request, "decode", at(began), at(decoded), {"msmlp.images": record.images})
        for stage, (begins, ends, attributes) in enumerate(_stages(record.landed), start=1):
            self._child(request, f"stage {stage}", at(decoded + begins), at(decoded + ends), attributes)
        request.end(at(record.ended))

    def close(self, seconds: float) -> bool:
        """Send the remaining spans; False if that takes longer than `seconds`."""
        # shutdown() itself waits for up to thirty seconds.
        sending = threading.Thread(target=self._provider.shutdown, name="msmlp-traces", daemon=True)
        sending.start()
        sending.join(seconds)
        return not sending.is_alive()

    def _child(self, request: Span, name: str, begins: int, ends: int, attributes: dict[str, Any]) -> None:
        span = self._tracer.start_span(name, set_span_in_context(request), attributes=attributes, start_time=begins)
        span.end(ends)


def _name(record: RequestRecord) -> str:
    method = _rpc_method(record)
    return f"{RPC_SERVICE}/{method}" if method else f"{record.method} {record.route}"


def _rpc_method(record: RequestRecord) -> str:
    return record.route.removeprefix("grpc/") if record.route.startswith("grpc/") else ""


def _of_request(record: RequestRecord) -> dict[str, Any]:
    status = int(record.status)
    attributes: dict[str, Any] = {
        "msmlp.request_id": record.request_id,
        "msmlp.status": status,
        "msmlp.images": record.images,
    }
    if method := _rpc_method(record):
        attributes |= {"rpc.system": "grpc", "rpc.service": RPC_SERVICE, "rpc.method": method}
    else:
        attributes |= {"http.request.method": record.method, "http.route": record.route}
        attributes["http.response.status_code"] = status
    if record.point:
        attributes |= {
            "msmlp.operating_point.name": record.point.name or "",
            "msmlp.operating_point.source": record.point.source,
        }
    if record.landed:
        attributes["msmlp.gflops"] = record.gflops
    return attributes


def _stages(landed: list[Landed]) -> Iterator[tuple[float, float, dict[str, Any]]]:
    """Begin, end and attributes of each stage that a request's images passed, in seconds from the end of decoding.

    It begins with the first image that waited and ends with the last that was answered. An image waits for a stage
    from the end of the one before, so its times add up.
    """
    if not landed:
        return
    exits = np.concatenate([part.exit for part in landed])
    history = np.concatenate([part.history for part in landed])
    queue, compute = history["queue_seconds"].astype(float), history["compute_seconds"].astype(float)
    batches = history["batch_size"]
    for stage in range(exits.max(initial=0)):
        here = exits > stage
        ends = (queue + compute)[here, : stage + 1].sum(axis=1)
        begins = ends - queue[here, stage] - compute[here, stage]
        yield (
            float(begins.min()),
            float(ends.max()),
            {
                "msmlp.stage": stage + 1,
                "msmlp.images": int(here.sum()),
                "msmlp.exited": int((exits == stage + 1).sum()),
                "msmlp.queue_ms": _ms(queue[here, stage].max()),
                "msmlp.compute_ms": _ms(compute[here, stage].max()),
                "msmlp.batch_size": int(batches[here, stage].max()),
            },
        )


def _ms(seconds: float) -> float:
    return round(1e3 * float(seconds), 3)


def otlp_provider() -> TracerProvider:
    """Sends to a collector over OTLP, in batches on a thread of its own, configured by the variables OTEL_....

    Raises:
        OptionError: a variable has a wrong value.
    """
    for name in ENDPOINTS:
        parts = urlsplit(os.environ.get(name) or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise OptionError(name, f"{os.environ[name]!r} is not an http:// or https:// address")
    try:
        resource = Resource({"service.name": "msmlp"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise OptionError("--traces", f"OpenTelemetry refuses a variable OTEL_...: {error}") from None
    return provider
