"""The ASGI application: routes, error handlers, and the lifespan of the engine and the gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from msmlp.model.errors import MsmlpError
from msmlp.service.engine.messages import Outbound, Ready
from msmlp.service.engine.transport import freeze_gc
from msmlp.service.errors import problem_document
from msmlp.service.grpc.start import grpc_beside
from msmlp.service.http.middleware import BodyLimit, FastPath, RequestMiddleware
from msmlp.service.http.openapi import DESCRIPTION, complete
from msmlp.service.http.responses import error_response, gone_response, internal_error, problem_response
from msmlp.service.http.routes import classify, oip, operations, playground
from msmlp.service.service import Service
from msmlp.service.telemetry.observers import watched

_HTTP_DETAILS = {
    HTTPStatus.NOT_FOUND: "no such path",
    HTTPStatus.METHOD_NOT_ALLOWED: "method not allowed; expected one of {allowed}",
}


def create_app(service: Service) -> ASGIApp:
    """The application of a service; the engine starts and stops with its lifespan."""
    app = FastPath(_framework(service), {classify.PATH: classify.post_classify, oip.INFER: oip.infer})
    return RequestMiddleware(BodyLimit(app, service.body_budget), service.accounts)


def _framework(service: Service) -> FastAPI:

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.watch(_when_ready)
        service.engine.start()
        async with watched(service):
            async with grpc_beside(service):
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
        docs_url=None,  # routes/operations.py has it
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(classify.router)
    app.include_router(operations.router)
    app.include_router(oip.router)
    app.include_router(playground.router)
    app.add_exception_handler(MsmlpError, _known_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unknown_error)
    complete(app.openapi())
    return app


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MsmlpError)
    return error_response(request, error)


async def _unknown_error(request: Request, error: Exception) -> Response:
    return internal_error(request.scope)  # Starlette raises the error again, and the middleware logs it


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    detail = _HTTP_DETAILS.get(status, status.description or status.phrase).format(allowed=headers.get("Allow"))
    document = problem_document(status, code, detail, request.scope["msmlp_account"].request_id)
    return problem_response(request.scope["path"], status, document, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    document = problem_document(status, "bad_option", str(error)[:200], request.scope["msmlp_account"].request_id)
    return problem_response(request.scope["path"], status, document)


async def _gone(request: Request, error: Exception) -> Response:
    return gone_response()


def _when_ready(message: Outbound) -> None:
    if isinstance(message, Ready):
        freeze_gc()
