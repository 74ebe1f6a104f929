"""The web app: routes, error handlers, and the lifespan of the engine and gRPC."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from msmlp.model.errors import MsmlpError
from msmlp.service.engine.messages import Outbound, Ready
from msmlp.service.grpc import grpc_running
from msmlp.service.http.browsers import EVERYWHERE
from msmlp.service.http.middleware import RequestMiddleware
from msmlp.service.http.openapi import DESCRIPTION, complete
from msmlp.service.http.protocol import Protocol
from msmlp.service.http.responses import error_response
from msmlp.service.http.routes import admin, classify, oip, operations
from msmlp.service.http.watch import Watch
from msmlp.service.memory import trimmed, tune_gc
from msmlp.service.service import Service
from msmlp.service.telemetry.observers import watched

UVICORN: dict[str, Any] = {
    "log_config": None,
    "access_log": False,  # service/telemetry/observers.py writes ours
    "http": Protocol,
    "server_header": False,
    "headers": list(EVERYWHERE.items()),
    "proxy_headers": False,  # nothing reads a client's address
    "ws": "none",  # a WebSocket handshake is a request like any other
}
"""How uvicorn runs."""


def create_app(service: Service, routers: Sequence[APIRouter] = ()) -> ASGIApp:
    """The application of a service, with more routes from `routers`; the engine starts and stops with its lifespan."""
    endpoints = {classify.PATH: classify.post_classify, oip.INFER: oip.infer}
    return RequestMiddleware(_framework(service, routers), endpoints, service)


def _framework(service: Service, routers: Sequence[APIRouter]) -> FastAPI:

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        service.engine.watch(_when_ready)
        service.engine.start()
        service.decoders.start()
        service.parser.start()
        settings = service.settings
        watch, door = Watch(service), service.engine.admission.door
        service.body_budget.make_room = watch.make_room
        access_log = settings.access_log or settings.log_level == "debug"
        async with watched(service.records, service.traces, access_log=access_log):
            async with grpc_running(service), watch.running(), trimmed(lambda: not door.work):
                yield {"msmlp_watch": watch}  # where connections find it
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
    for router in (classify.router, operations.router, oip.router, admin.router, *routers):
        app.include_router(router)
    for kind in (MsmlpError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer_error)
    complete(app.openapi())
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, error)


def _when_ready(message: Outbound) -> None:
    if isinstance(message, Ready):
        tune_gc()
