"""Who is told of requests besides metrics and statistics, as the settings say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from model.errors import OptionError
from service.access_log import log_access
from service.state import Service
from service.triton_metrics import TritonMetrics

if TYPE_CHECKING:
    from service.traces import Traces


def check_traces() -> None:
    """Raise OptionError when what `--traces` needs is not there."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError as error:
        raise OptionError(
            "--traces", f"needs the package {error.name}; scripts/install.sh cpu serve,telemetry brings it (or gpu ...)"
        ) from None


@asynccontextmanager
async def watched(service: Service) -> AsyncIterator[None]:
    """They are told of the requests inside."""
    settings, observers = service.settings, service.accounts.observers
    if settings.triton_metrics:
        counted = TritonMetrics(
            service.facts.model,
            service.statistics,
            executions=lambda: service.metrics.executions,
            pending=lambda: service.engine.requests,
        )
        service.metrics.registry.register(counted)
    traces = _traces(service) if settings.traces else None
    if traces is not None:
        observers.append(traces.ended)
    if settings.access_log or settings.log_level == "debug":
        observers.append(log_access)  # after the traces, whose ids it names
    try:
        yield
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close)


def _traces(service: Service) -> "Traces":
    from service.traces import Traces, otlp_provider

    return Traces(otlp_provider(), service.facts.model)
