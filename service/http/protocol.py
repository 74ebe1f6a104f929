"""HTTP/1.1: uvicorn's httptools protocol, with limits on what a connection holds and errors in our own form.

Heads that httptools refuses are read again with h11, which uvicorn brings along: it accepts every method, every target
and the body of an upgrade request, so that the application can answer them. It is too slow for everything else.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from contextvars import Context
from http import HTTPStatus
from typing import Any, Self

import httptools
from starlette.types import Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from msmlp.service.errors import PROBLEM_TYPE, problem_document

log = logging.getLogger("msmlp.http")

MAX_HEAD = 2**16
"""Bytes of a request line and headers, or of trailers; httptools has no limit."""

MAX_WAITING = 64
"""Pipelined requests that wait on one connection; a packet can hold thousands."""

_BETWEEN, _HEAD, _BODY = range(3)


class Departure:
    """Calls `tell` when a connection's client leaves; one callback at a time, as requests are answered in turn.

    Requests find their connection's as `msmlp_departure` in the state of their scope.
    """

    def __init__(self) -> None:
        self.over = False
        self.tell: Callable[[], None] | None = None


def _head_length(read: bytes | bytearray) -> int | None:
    """The length of the head at the start of these bytes; None if parsers could disagree on its end."""
    begins = 0
    while read[begins : begins + 1] in (b"\r", b"\n"):  # empty lines may stand before a request
        begins += 1
    ends = read.find(b"\r\n\r\n", begins)
    if ends < 0 or read.count(b"\n", begins, ends) != read.count(b"\r\n", begins, ends):
        return None
    return ends + 4


class _Pieces:
    """Replaces uvicorn's bytearray for a body: pieces are joined once, a single one is not copied."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> Self:
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)


class _Flow(FlowControl):
    """Does not resume reading while requests that were read wait for their turn."""

    def __init__(self, transport: asyncio.Transport, waiting: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting():
            super().resume_reading()


class _Joining:
    """A transport that sends the head of a response together with its body: two packets would wake the client twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)  # for a body that comes later
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


def unanswered(send: Send) -> RequestResponseCycle | None:
    """The request behind `send` if `reply` may answer it; None if its answer must go as messages."""
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.response_started or cycle.flow.write_paused:
        return None
    return cycle


def reply(cycle: RequestResponseCycle, head: str, body: bytes) -> None:
    """Answer a request with 200 in one write. `head` has whole lines, without those that uvicorn adds.

    uvicorn checks every header and takes two messages, which costs as much as parsing the request.
    """
    if cycle.disconnected:
        return
    cycle.response_started = cycle.response_complete = True
    more = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
    end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    cycle.transport.write(b"".join((b"HTTP/1.1 200 OK\r\n", more, head.encode(), end, body)))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


class _Connection:
    """Common to both parsers' connections: the departure, and refusals in the form of all other errors."""

    app_state: dict[str, Any]
    transport: Any
    detail = "this is not HTTP/1.1"

    def connection_made(self, transport: Any) -> None:
        self._departure = Departure()
        self.app_state = {**self.app_state, "msmlp_departure": self._departure}
        super().connection_made(transport)  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        self._departure.over = True
        if self._departure.tell is not None:
            self._departure.tell()

    def send_400_response(self, msg: str) -> None:
        request_id, status = uuid.uuid4().hex, HTTPStatus.BAD_REQUEST
        log.info("refused: %s", self.detail, extra={"request_id": request_id})
        body = json.dumps(problem_document(status, "bad_request", self.detail, request_id)).encode()
        lines = (
            f"HTTP/1.1 {status} {status.phrase}",
            f"content-type: {PROBLEM_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.transport.close()


class _H11Connection(_Connection, H11Protocol):
    """A connection on which httptools refused a head."""

    def send_400_response(self, msg: str) -> None:
        """Refuse the request, unless its response has begun: that is cut short instead."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # the application still waits for the rest of the body
        else:
            super().send_400_response(msg)

    def _should_upgrade(self) -> bool:
        return False  # quietly


class Protocol(_Connection, HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = _BETWEEN
        self._head: bytes | bytearray = b""  # of the request being read, where it is known where that began
        self._data = b""  # what came last
        self._begins = 0  # where the head does in it; below 0 when it came before
        self._ends: int | None = 0  # where what has been read of the body does; None where that is unknown
        self._unclaimed = 0  # bytes that came since the last head or piece of a body
        self._refusing = False  # as soon as what came before is answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop))
        self.flow = _Flow(transport, lambda: self._refusing or bool(self.pipeline))

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusing:
            if self._head:  # what was on its way before reading was paused
                self._head = bytes(self._head) + data
            return
        self._data = data
        if self._place == _BETWEEN:
            self._head, self._begins, self._unclaimed = data, 0, 0
        elif self._head:
            self._begins = -len(self._head)
            self._head = bytearray(self._head) if isinstance(self._head, bytes) else self._head
            self._head += data
        elif self._ends is not None:
            self._ends = 0
        self._unclaimed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._place != _BETWEEN and self._unclaimed > MAX_HEAD:
            self._head = b""
            self._refuse()

    def _refuse(self) -> None:
        """Stop reading with httptools: now, or once all earlier requests are answered."""
        behind = self._place != _BODY  # else the newest request itself is broken
        if self.cycle is None or self.cycle.response_complete:
            self._hand_over()
        elif self.cycle.response_started and not (behind or self.pipeline):
            self.transport.close()  # the application still waits for the rest of the body
        elif behind or self.pipeline:
            self._refusing = True
            self.flow.pause_reading()
            if self.pipeline and not behind:
                self.pipeline.popleft()
        else:
            self.send_400_response("")

    def _hand_over(self) -> None:
        if not self._head:
            self.send_400_response("")
            return
        self._refusing = False
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        connection = _H11Connection(self.config, self.server_state, self.app_state, self.loop)
        self.connections.discard(self)
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)
        # Outside the context of the request whose response led here.
        Context().run(connection.data_received, bytes(self._head))

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusing and not self.transport.is_closing():
            self._hand_over()

    def on_message_begin(self) -> None:
        self._place = _HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped, as they would be taken for headers of a waiting request."""
        if self._place == _HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            # An upgrade is a request like any other, but httptools would end it here, without its body.
            raise httptools.HttpParserError
        hosts, chunked = 0, False
        for name, _ in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":  # whose sizes the parser keeps
                chunked = True
        self._check_head(hosts)
        super().on_headers_complete()
        length = _head_length(self._head)
        self._ends = None if chunked or length is None else self._begins + length
        self._place, self._head, self._unclaimed = _BODY, b"", 0

    def _check_head(self, hosts: int) -> None:
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self.detail = f"expected one Host header, got {hosts or 'none'}"
        elif len(self.pipeline) == MAX_WAITING:
            self.detail = f"more than {MAX_WAITING} pipelined requests on one connection"
        else:
            return
        self._head = b""
        raise httptools.HttpParserError

    def on_body(self, body: bytes) -> None:
        self._unclaimed = 0
        if self._ends is not None:
            self._ends += len(body)
        if not self.cycle.body:  # nothing has come yet, or uvicorn has passed it on
            self.cycle.body = _Pieces()  # type: ignore[assignment]
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._place = _BETWEEN
        if self._ends is not None and self._ends < len(self._data):  # the next request came with it
            self._head, self._begins = self._data[self._ends :], self._ends
        super().on_message_complete()
