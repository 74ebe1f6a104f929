"""What runs around every request, as plain ASGI: its record, the limit on bodies, and a short way to the endpoints."""

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

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.engine.admission import Admission
from msmlp.service.engine.door import SMALL_BYTES
from msmlp.service.errors import CLIENT_CLOSED_REQUEST, OverloadedError
from msmlp.service.http.browsers import Browsers, RawHeaders
from msmlp.service.http.connection import Departure
from msmlp.service.http.gate import Gate
from msmlp.service.http.protocol import reply, unanswered
from msmlp.service.http.responses import Sent, error_response
from msmlp.service.logs import sane_id
from msmlp.service.memory import free_frames
from msmlp.service.oip.model import route_label
from msmlp.service.service import ByteBudget, Service
from msmlp.service.telemetry.record import RequestRecord, RequestRecords

log = logging.getLogger("msmlp.http")

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
"""Others are labelled `other`: a client could invent any number of them."""

ROUTES = {"/", "/admin/reload", "/classify", "/docs", "/livez", "/metrics", "/model", "/openapi.json", "/readyz"}

MAX_PARAMETERS = 64
"""Of a query: far more than there are options. FastAPI parses all of them on every route."""

Endpoint = Callable[[Request], Awaitable[Response]]


class RequestMiddleware:
    """Keeps the record of each request, `msmlp_record` in the scope, and counts the bytes of its body.

    A request without a key that it needs is refused here, before its body is read, and under overload a POST to one of
    `endpoints`.

    A POST whose path matches one of `endpoints` goes straight there: FastAPI's routing costs more than the answer. All
    else goes to `app`, which knows these routes too: it describes them, and answers other methods.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[re.Pattern[str], Endpoint], service: Service) -> None:
        self._app, self._endpoints, self._records = app, endpoints, service.records
        self._budget, self._admission = service.body_budget, service.engine.admission
        self._door, self._shed = self._admission.door, service.metrics.shed.labels("door")
        self._largest = service.settings.max_body_bytes
        self._gate, self._browsers = Gate(service), Browsers(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            scope.get("state", {})["msmlp_refuse"] = self.refuse  # where connections find it
            await self._app(scope, receive, send)
            return
        record = scope["msmlp_record"] = _record(scope)
        exchange = _Exchange(scope, self._records, self._budget, self._admission, receive, send)
        exchange.more = self._browsers.headers(scope)
        if _is_put(scope):
            scope = {**scope, "method": "POST"}
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # answered alike; uvicorn leaves the body out
        with self._records.open(record):
            try:
                await self._respond(scope, exchange)
            except asyncio.CancelledError as error:
                record.status = HTTPStatus.SERVICE_UNAVAILABLE  # the server stops without waiting
                free_frames(error)
                raise
            except Exception as error:
                # A failure below still has a response, an id and a row in the metrics.
                log.exception("request failed")
                if not record.status:
                    await error_response(scope, error)(scope, receive, exchange.send)
                free_frames(error)
            finally:
                exchange.give_back()
                self._door.leave(exchange.work)
            if math.isnan(record.ended):
                record.status = CLIENT_CLOSED_REQUEST  # before its response was sent in full

    def refuse(self, scope: Scope) -> tuple[str, bytes, HTTPStatus] | None:
        """What a request is refused with before its body is read, as `reply` takes it; None for one that is let in."""
        if scope["method"] in ("HEAD", "OPTIONS"):
            return None  # `reply` writes a body, and a browser asks with OPTIONS before it sends a key
        if (error := self._gate.refuse(scope) or self._turned_away(scope)) is None:
            return None
        record = scope["msmlp_record"] = _record(scope)
        response = error_response(scope, error)
        if isinstance(error, OverloadedError) and error.reason == "door":
            self._shed.inc()
        record.status = response.status_code
        self._records.close(record)
        head = _lines([*response.raw_headers, *self._browsers.headers(scope)])
        head += f"x-request-id: {record.request_id}\r\n"
        return head, bytes(response.body), HTTPStatus(response.status_code)

    def _turned_away(self, scope: Scope) -> OverloadedError | None:
        if not (self._door.work or self._budget.free < self._largest):
            return None
        if scope["method"] != "POST" and not _is_put(scope):
            return None
        if not any(pattern.fullmatch(scope["path"]) for pattern in self._endpoints):
            return None
        return self._no_room(scope)

    def _no_room(self, scope: Scope) -> OverloadedError | None:
        """Why the body of a request is not to be read: too much work, or no memory for what it declares."""
        if self._door.closed(now := time.monotonic()):
            return self._admission.turn_away(_declared(scope), now)
        # Where the largest body fits, none is looked at. One that is too large has an answer of its own.
        if self._budget.free < self._largest and (size := _declared(scope)) <= self._largest:
            return self._budget.refusal(size)
        return None

    async def _respond(self, scope: Scope, exchange: "_Exchange") -> None:
        if response := self._at_once(scope):
            await response(scope, exchange.receive, exchange.send)
            return
        if scope["method"] == "POST":
            for pattern, endpoint in self._endpoints.items():
                if found := pattern.fullmatch(scope["path"]):
                    scope["app"], scope["path_params"] = self._app, found.groupdict()
                    try:
                        # Here, `refuse` was not called over h11, nor for a client that does not read.
                        if refusal := self._no_room(scope):
                            raise refusal
                        response = await endpoint(Request(scope, exchange.receive))
                    except (MsmlpError, ClientDisconnect, MemoryError) as error:
                        if isinstance(error, OverloadedError) and error.reason == "door":
                            self._shed.inc()
                        response = error_response(scope, error)
                        free_frames(error)
                    if not (isinstance(response, Sent) and exchange.reply(response)):
                        await response(scope, exchange.receive, exchange.send)
                    return
        await self._app(scope, exchange.receive, exchange.send)

    def _at_once(self, scope: Scope) -> Response | None:
        """The answer to a request that no route is to see."""
        if scope["method"] == "OPTIONS" and (allowed := self._browsers.preflight(scope)):
            return allowed
        if refused := self._gate.refuse(scope):
            return error_response(scope, refused)
        scope["msmlp_record"].key = scope.get("msmlp_key")
        if scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            return error_response(scope, OptionError("query", f"more than {MAX_PARAMETERS} parameters"))
        return None


class _Exchange:
    """A request's way in and out.

    The `held` bytes of its body count until it is answered: permits bound the images, but are taken only once a body
    was read. One that would exceed the budget is answered 429. One that comes too slowly is answered 408, and its bytes
    come back as soon as its connection ends it. Once read, a body is `work`.
    """

    def __init__(
        self,
        scope: Scope,
        records: RequestRecords,
        budget: ByteBudget,
        admission: Admission,
        receive: Receive,
        send: Send,
    ) -> None:
        self._scope, self._record, self._records = scope, scope["msmlp_record"], records
        self._budget, self._admission = budget, admission
        self._receive, self._send = receive, send
        self.held, self.work = 0, 0.0
        self.more: RawHeaders = []  # headers of the answer
        self._unfinished: Departure | None = None  # while more of the body is to come

    async def receive(self) -> Message:
        message = await self._receive()
        if message.get("more_body") or self._unfinished:
            departure: Departure = self._scope["state"]["msmlp_departure"]
            if departure.over:
                raise departure.reason()
            self._unfinished = departure if message.get("more_body") else None
            departure.tell = self.give_back if self._unfinished else None
        size = len(message.get("body", b""))
        self._budget.take(size)
        self.held += size
        if not (self.work or message.get("more_body")) and message["type"] == "http.request":
            door = self._admission.door
            if self.held > SMALL_BYTES and door.closed(now := time.monotonic()):  # others came while it was read
                raise self._admission.turn_away(self.held, now)
            self.work = door.enter(self.held)
        return message

    def give_back(self) -> None:
        self._budget.give_back(self.held)
        self.held = 0
        if self._unfinished:
            self._unfinished.tell = None

    def reply(self, answer: Sent) -> bool:
        """Send a whole answer, which ends the record; False if it must go as messages."""
        cycle = unanswered(self._send)
        if cycle is None:
            return False
        self._record.status = answer.status_code
        self._records.close(self._record)  # before the client has it, and may ask for the metrics
        head = f"{answer.head}{_lines(self.more)}x-request-id: {self._record.request_id}\r\n"
        reply(cycle, head, bytes(answer.body))
        return True

    async def send(self, message: Message) -> None:
        """Send a message, the first one with the request's id and `more`; the last one ends the record."""
        record = self._record
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message["headers"] = [*message["headers"], *self.more, (b"x-request-id", record.request_id.encode())]
        elif not message.get("more_body"):
            self._records.close(record)
        await self._send(message)


def _lines(headers: RawHeaders) -> str:
    return "".join(f"{name.decode()}: {value.decode('latin-1')}\r\n" for name, value in headers)


def _declared(scope: Scope) -> int:
    """The Content-Length of a request; 0 without one."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(length) if length.isdigit() else 0


def _is_put(scope: Scope) -> bool:
    """Whether an image comes with PUT, as `curl -T` sends it."""
    return bool(scope["method"] == "PUT" and scope["path"] == "/classify")


def _record(scope: Scope) -> RequestRecord:
    arrival, raw = time.monotonic(), scope["headers"]
    given = next((value for name, value in raw if name == b"x-request-id"), b"").decode("latin-1")

    def headers() -> Mapping[str, str]:  # without the scope, which holds the record: a cycle is not freed at once
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}

    method = scope["method"] if scope["method"] in METHODS else "other"
    return RequestRecord(sane_id(given), arrival, method, _route(scope["path"]), headers)


def _route(path: str) -> str:
    if path.startswith("/ui/"):
        return "/ui"
    return path if path in ROUTES else route_label(path) or "other"
