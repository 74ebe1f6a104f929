"""Around every request: its id, when it arrived, and its row in the metrics. Plain ASGI, as it runs for all traffic."""

import logging
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_document
from service.metrics import Metrics
from service.oip.paths import route_label
from service.problems import problem_response
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
        request_id = scope["msmlp_request_id"] = sane_id(Headers(scope=scope).get("x-request-id", ""))
        route = _route(scope["path"])

        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                self._metrics.requests.labels(route, message["status"]).inc()
                self._metrics.request_seconds.labels(route).observe(time.monotonic() - arrival)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            # The last line: nothing below may fail without an answer, an id and a row in the metrics.
            log.exception("request %s failed", request_id)
            if not started:
                await _internal_error(scope["path"], request_id)(scope, receive, send_and_note)


def _route(path: str) -> str:
    """A label from a bounded set, whatever paths are asked for."""
    if path.startswith("/ui/"):
        return "/ui"
    return path if path in ROUTES else route_label(path) or "other"


def _internal_error(path: str, request_id: str) -> JSONResponse:
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    document = problem_document(status, "internal", "the server failed", request_id)
    return problem_response(path, status, document)
