"""Around every request: its account, with its id and its arrival. Plain ASGI, as it runs for all traffic."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msmlp.service.account import Account, Accounts
from msmlp.service.oip.paths import route_label
from msmlp.service.problems import CLIENT_CLOSED_REQUEST, internal_error
from msmlp.service.request_id import sane_id

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
