"""Around every request: its account, with its id and its arrival. Plain ASGI, as it runs for all traffic."""

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
from msmlp.service.byte_budget import Memory
from msmlp.service.errors import CLIENT_CLOSED_REQUEST
from msmlp.service.http.problems import error_response, gone_response, internal_error
from msmlp.service.logs import sane_id
from msmlp.service.oip.model import route_label
from msmlp.service.telemetry.record import Account, Accounts

log = logging.getLogger("msmlp.http")

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
"""Any other is the client's own word."""

ROUTES = {"/", "/classify", "/docs", "/livez", "/metrics", "/model", "/openapi.json", "/readyz"}


class RequestMiddleware:
    """Sets `msmlp_account` in the scope and `X-Request-ID` in the answer."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app, self._accounts = app, accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = scope["msmlp_account"] = _account(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", account.request_id.encode())]
            elif not message.get("more_body"):
                self._accounts.close(account)  # before the client can know, and asks for what it has come to
            await send(message)

        with self._accounts.open(account):
            try:
                await self._app(scope, receive, send_and_note)
            except asyncio.CancelledError:
                account.status = HTTPStatus.SERVICE_UNAVAILABLE  # the server ends, and waits no longer
                raise
            except Exception:
                # The last line: nothing below may fail without an answer, an id and a row in the metrics.
                log.exception("a request failed")
                if not account.status:
                    await internal_error(scope)(scope, receive, send_and_note)
            if math.isnan(account.ended):
                account.status = CLIENT_CLOSED_REQUEST  # while its answer was on the way


def _account(scope: Scope) -> Account:
    arrival = time.monotonic()
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")

    def headers() -> Mapping[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    method = scope["method"] if scope["method"] in METHODS else "other"
    return Account(sane_id(given), arrival, method, _route(scope["path"]), headers)


def _route(path: str) -> str:
    """A label from a bounded set, whatever paths are asked for."""
    if path.startswith("/ui/"):
        return "/ui"
    return path if path in ROUTES else route_label(path) or "other"


# FROM service/http/middleware.py:
# What HTTP bodies hold in memory: places are taken only once a body was read.


class BodyMemory:
    """Counts the bytes of bodies from their arrival until their request is answered; plain ASGI.

    A request that would pass the limit is answered 429.
    """

    def __init__(self, app: ASGIApp, memory: Memory) -> None:
        self._app, self._memory = app, memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b""))
            self._memory.take(size)
            mine += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._memory.give_back(mine)


# FROM service/http/middleware.py:
# The shortest way to the few routes that take images: the framework's own costs more than the answer.

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """POST requests whose path matches one of `endpoints` go straight there, all others to `app`; plain ASGI.

    The application knows these routes too: it describes them, and answers what is no POST.
    """

    def __init__(self, app: ASGIApp, endpoints: dict[re.Pattern[str], Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] == "http" and scope["method"] == "POST":
            for pattern, endpoint in self._endpoints.items():
                if found := pattern.fullmatch(scope["path"]):
                    scope["app"], scope["path_params"] = self._app, found.groupdict()
                    response = await _answered(endpoint, Request(scope, receive))
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _answered(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except MsmlpError as error:
        return error_response(request, error)
    except ClientDisconnect:
        return gone_response()
