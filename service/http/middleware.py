"""What runs around every request, as plain ASGI: its record, the limit on bodies, and a fast path to the endpoints."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import CLIENT_CLOSED_REQUEST
from msmlp.service.http.responses import error_response
from msmlp.service.logs import sane_id
from msmlp.service.oip.model import route_label
from msmlp.service.service import ByteBudget
from msmlp.service.telemetry.record import RequestRecord, RequestRecords

log = logging.getLogger("msmlp.http")

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
"""Others are labelled `other`: a client could invent any number of them."""

ROUTES = {"/", "/classify", "/docs", "/livez", "/metrics", "/model", "/openapi.json", "/readyz"}


class RequestMiddleware:
    """Keeps the record of each request, `msmlp_record` in the scope, and sets `X-Request-ID` in the response."""

    def __init__(self, app: ASGIApp, records: RequestRecords) -> None:
        self._app, self._records = app, records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["msmlp_record"] = _record(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            elif not message.get("more_body"):
                self._records.close(record)  # before the client has it all, and may ask for the metrics
            await send(message)

        with self._records.open(record):
            try:
                await self._app(scope, receive, send_and_note)
            except asyncio.CancelledError:
                record.status = HTTPStatus.SERVICE_UNAVAILABLE  # the server stops without waiting
                raise
            except Exception as error:
                # A failure below still has a response, an id and a row in the metrics.
                log.exception("request failed")
                if not record.status:
                    await error_response(scope, error)(scope, receive, send_and_note)
            if math.isnan(record.ended):
                record.status = CLIENT_CLOSED_REQUEST  # before its response was sent in full


def _record(scope: Scope) -> RequestRecord:
    arrival = time.monotonic()
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")

    def headers() -> Mapping[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    method = scope["method"] if scope["method"] in METHODS else "other"
    return RequestRecord(sane_id(given), arrival, method, _route(scope["path"]), headers)


def _route(path: str) -> str:
    if path.startswith("/ui/"):
        return "/ui"
    return path if path in ROUTES else route_label(path) or "other"


class BodyLimit:
    """Counts the bytes of bodies until their requests are answered; one that would exceed the budget is answered 429.

    Permits bound the images, but are taken only once a body was read.
    """

    def __init__(self, app: ASGIApp, budget: ByteBudget) -> None:
        self._app, self._budget = app, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b""))
            self._budget.take(size)
            mine += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._budget.give_back(mine)


Endpoint = Callable[[Request], Awaitable[Response]]


class FastPath:
    """Takes a POST whose path matches one of `endpoints` straight there: FastAPI's routing costs more than the answer.

    All else goes to `app`, which knows these routes too: it describes them, and answers other methods.
    """

    def __init__(self, app: ASGIApp, endpoints: dict[re.Pattern[str], Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for pattern, endpoint in self._endpoints.items():
                if found := pattern.fullmatch(scope["path"]):
                    scope["app"], scope["path_params"] = self._app, found.groupdict()
                    try:
                        response = await endpoint(Request(scope, receive))
                    except (MsmlpError, ClientDisconnect) as error:
                        response = error_response(scope, error)
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)
