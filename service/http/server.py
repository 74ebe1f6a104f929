"""The web app (routes, error handlers, the lifespan of the engine and gRPC) and the process that serves it."""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from msmlp.model.errors import DeviceError, MsmlpError, OptionError
from msmlp.service.engine.messages import Died, Outbound, Ready
from msmlp.service.engine.transport import freeze_gc
from msmlp.service.grpc import check_installed, grpc_running
from msmlp.service.http.middleware import BodyLimit, FastPath, RequestMiddleware
from msmlp.service.http.openapi import DESCRIPTION, complete
from msmlp.service.http.protocol import Protocol
from msmlp.service.http.responses import error_response
from msmlp.service.http.routes import classify, oip, operations
from msmlp.service.logs import Logging
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings
from msmlp.service.telemetry.observers import trace_factory, watched

log = logging.getLogger("msmlp.server")

UVICORN: dict[str, Any] = {
    "log_config": None,
    "access_log": False,  # service/telemetry/observers.py writes ours
    "http": Protocol,
    "server_header": False,
    "proxy_headers": False,  # nothing reads a client's address
    "ws": "none",  # a WebSocket handshake is a request like any other
    "timeout_graceful_shutdown": 30,  # seconds
}
"""How uvicorn runs."""


def create_app(service: Service) -> ASGIApp:
    """The application of a service; the engine starts and stops with its lifespan."""
    app = FastPath(_framework(service), {classify.PATH: classify.post_classify, oip.INFER: oip.infer})
    return RequestMiddleware(BodyLimit(app, service.body_budget), service.records)


def _framework(service: Service) -> FastAPI:

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.watch(_when_ready)
        service.engine.start()
        settings = service.settings
        access_log = settings.access_log or settings.log_level == "debug"
        async with watched(service.records, service.traces, access_log=access_log):
            async with grpc_running(service):
                yield
                service.draining = True
            await service.engine.stop()
            await asyncio.to_thread(service.decoders.shutdown)

    app = FastAPI(
        title="msmlp",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        docs_url=None,  # in routes/operations.py
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(classify.router)
    app.include_router(operations.router)
    app.include_router(oip.router)
    for kind in (MsmlpError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer_error)
    complete(app.openapi())
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, error)


def _when_ready(message: Outbound) -> None:
    if isinstance(message, Ready):
        freeze_gc()


class _Server(uvicorn.Server):
    """A signal first ends readiness; an orderly shutdown exits with status 0 (uvicorn would raise the signal again)."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second SIGINT stops immediately."""
        self._service.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(settings: Settings, build: Callable[[Settings], Service] = build_service) -> None:
    """Serve what `build` puts together until SIGINT or SIGTERM; requests in flight are answered before it returns.

    Raises:
        CallerError: weights, settings, device or address that do not fit, before anything starts.
        DeviceError: the engine could not be built or warmed up, or died.
    """
    Logging(settings.log_level, settings.log_format).begin()
    if settings.grpc_port is not None:
        check_installed()
        if settings.grpc_port == settings.port != 0:
            raise OptionError("--grpc-port", f"{settings.port} is the HTTP port already; choose another")
        # gRPC listens later, and does not say why it cannot.
        listen(settings.host, settings.grpc_port, "--grpc-port").close()
    traces = trace_factory() if settings.traces else None
    service = build(settings)
    if traces is not None:
        service.traces = traces(service.facts.model)
    with listen(settings.host, settings.port) as listener:
        server = _Server(service, uvicorn.Config(create_app(service), **UVICORN))
        failures: list[str] = []

        def watch(message: Outbound) -> None:
            if isinstance(message, Died) and not message.restarting and not server.should_exit:
                # A process without an engine is useless: let its supervisor start another.
                failures.append(message.detail)
                server.should_exit = True

        service.engine.watch(watch)
        host, port = listener.getsockname()[:2]
        log.info("serving %s on http://%s:%d", service.facts.model["name"], host, port)
        server.run(sockets=[listener])
    if failures:
        raise DeviceError(f"the engine stopped: {failures[0]}")


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket (port 0: a free one); OptionError, naming `option`, when it cannot listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror or error)
        if error.errno == errno.EADDRINUSE:
            reason = f"the address is in use; choose another with {option}"
        raise OptionError(option, f"cannot listen on {host}:{port}: {reason}") from None
    # Connections inherit it; asyncio sets it only on sockets that name their protocol. Without it the body of an answer
    # waits for the client's delayed acknowledgement of the headers: 40 ms on a kept connection.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
