"""Around every request: its id, when it arrived, and its row in the metrics. Plain ASGI, as it runs for all traffic."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.oip.paths import route_label
from service.problems import internal_error
from service.request_id import sane_id

log = logging.getLogger("msmlp.http")

ROUTES = {"/", "/classify", "/docs", "/livez", "/metrics", "/model", "/openapi.json", "/readyz"}


class RequestMiddleware:
    """Sets `msmlp_arrival` (monotonic seconds) and `msmlp_request_id` in the scope, `X-Request-ID` in the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrival = scope["msmlp_arrival"] = time.monotonic()
        request_id = scope["msmlp_request_id"] = _request_id(scope)
        route = _route(scope["path"])
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                self._metrics.responded(route, message["status"], time.monotonic() - arrival)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            # The last line: nothing below may fail without an answer, an id and a row in the metrics.
            log.exception("request %s failed", request_id)
            if not started:
                await internal_error(scope)(scope, receive, send_and_note)


def _route(path: str) -> str:
    """A label from a bounded set, whatever paths are asked for."""
    if path.startswith("/ui/"):
        return "/ui"
    return path if path in ROUTES else route_label(path) or "other"


def _request_id(scope: Scope) -> str:
    """What the client calls its request, where that is sane."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return sane_id(given)
