"""Who is told of requests besides metrics and statistics, as the settings say."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msmlp.model.errors import OptionError
from msmlp.service.service import Service
from msmlp.service.telemetry.access_log import log_access
from msmlp.service.telemetry.background import Beside
from msmlp.service.telemetry.record import Observer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from msmlp.service.telemetry.traces import Traces

log = logging.getLogger("msmlp.telemetry")


def trace_provider() -> "TracerProvider":
    """Where traces go.

    Raises:
        OptionError: what `--traces` needs is not there, or the environment says what cannot be.
    """
    try:
        from msmlp.service.telemetry.traces import otlp_provider
    except ModuleNotFoundError as error:
        raise OptionError(
            "--traces", f"needs the package {error.name}; scripts/install.sh cpu serve,telemetry brings it (or gpu ...)"
        ) from None
    return otlp_provider()


def traces_of(provider: "TracerProvider", service: Service) -> "Traces":
    """A service's, sent there."""
    from msmlp.service.telemetry.traces import Traces

    return Traces(provider, service.facts.model)


@asynccontextmanager
async def watched(service: Service) -> AsyncIterator[None]:
    """They are told of the requests inside."""
    settings, traces = service.settings, service.traces
    observers: list[Observer] = [traces.ended] if traces is not None else []
    if settings.access_log or settings.log_level == "debug":
        observers.append(log_access)  # after the traces, whose ids it names
    if not observers:
        yield
        return
    beside = Beside(observers)
    service.accounts.observers.append(beside.ended)
    try:
        yield
    finally:
        told = await asyncio.to_thread(beside.close)
        sent = traces is None or await asyncio.to_thread(traces.close)
        if not (told and sent):
            log.warning("the last requests are missing in the log or the traces, which were taken too slowly")
