"""Where traces go: to a collector over OTLP, as OpenTelemetry's own variables in the environment say."""

import os
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from msmlp.model.errors import OptionError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def otlp_provider() -> TracerProvider:
    """Sends to a collector over OTLP, in batches and on a thread of its own, as OTEL_... in the environment says.

    Raises:
        OptionError: what it says cannot be.
    """
    for name in ENDPOINTS:
        parts = urlsplit(os.environ.get(name) or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise OptionError(name, f"{os.environ[name]!r} is no http:// or https:// address")
    try:
        resource = Resource({"service.name": "msmlp"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise OptionError("--traces", f"OpenTelemetry refuses a variable OTEL_...: {error}") from None
    return provider
