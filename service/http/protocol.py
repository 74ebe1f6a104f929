"""HTTP/1.1: uvicorn's httptools protocol, with limits on what a connection holds and errors in our own form."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from http import HTTPStatus
from typing import Any, Self

import httptools
from starlette.types import Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from msmlp.service.http.connection import (
    BETWEEN,
    BODY,
    CHUNK,
    HEAD,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_SMALL,
    ODD_VERSION,
    SMALL_CHUNKS,
    TOO_LONG,
    TOO_MANY,
    VERSIONS,
    Connection,
    H11Connection,
    Refused,
    check_coding,
    head_size,
)
from msmlp.service.http.transports import Joining, Paced

MAX_WAITING = 64
"""Pipelined requests that wait on one connection; a packet can hold thousands."""


def _head_length(read: bytes | bytearray) -> int | None:
    """The length of the head at the start of these bytes; None if parsers could disagree on its end."""
    begins = 0
    while read[begins : begins + 1] in (b"\r", b"\n"):  # empty lines may precede a request
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

    def forget(self) -> None:
        """The connection is lost: do not hold it."""
        self._waiting = bool


def unanswered(send: Send) -> RequestResponseCycle | None:
    """The request behind `send` if `reply` may answer it; None if its answer must go as messages."""
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.response_started or cycle.flow.write_paused:
        return None
    return cycle


def reply(cycle: RequestResponseCycle, head: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
    """Answer a request in one write. `head` has whole lines, without those that uvicorn adds.

    uvicorn checks every header and takes two messages, which costs as much as parsing the request.
    """
    if cycle.disconnected:
        return
    cycle.response_started = cycle.response_complete = True
    more = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
    end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    first = f"HTTP/1.1 {status} {status.phrase}\r\n"
    cycle.transport.write(b"".join((first.encode(), more, head.encode(), end, body)))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


class Protocol(Connection, HttpToolsProtocol):
    flow: _Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = BETWEEN
        self._head: bytes | bytearray = b""  # of the request being read, where it is known where that began
        self._data = b""  # what came last
        self._begins = 0  # where the head does in it; below 0 when it came before
        self._ends: int | None = 0  # where what has been read of the body does; None where that is unknown
        self._unclaimed = 0  # bytes that came since the last head or piece of a body
        self._small = 0  # see MAX_SMALL
        self._refusing = False  # as soon as what came before is answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        secure = transport.get_extra_info("sslcontext") is not None
        super().connection_made((Paced if secure else Joining)(transport, self.loop))
        self._refusal = self.app_state.get("msmlp_refuse")
        self.flow = _Flow(transport, lambda: self._refusing or bool(self.pipeline))
        if secure:
            transport.set_write_buffer_limits(high=1)  # see Paced

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._data = self._head = b""
        self.flow.forget()

    @property
    def place(self) -> int:
        return self._place

    @property
    def target(self) -> bytes:
        return self.url if self._place == HEAD else b""

    def data_received(self, data: bytes) -> None:
        self.read += len(data)
        if self._refusing:
            if self._head:  # what was on its way before reading was paused
                self._head = bytes(self._head) + data
            return
        self._data = data
        if self._place == BETWEEN:
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
        if self._place != BETWEEN and self._unclaimed > MAX_HEAD:
            self._head, self.refused = b"", Refused(TOO_LONG)
            self._refuse()

    def _refuse(self) -> None:
        """Stop reading with httptools: now, or once all earlier requests are answered."""
        if self.transport.is_closing():  # the last request has been answered
            return
        behind = self._place != BODY  # else the newest request itself is broken
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
        self.flow.resume_reading()
        connection = H11Connection(self.config, self.server_state, self.app_state, self.loop)
        self.connections.discard(self)
        self._watch.closed(self)
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)
        read, self._data, self._head = bytes(self._head), b"", b""
        self.parser = self.cycle = None  # type: ignore[assignment]  # which hold this in turn
        self.flow.forget()
        # Outside the context of the request whose response led here.
        Context().run(connection.data_received, read)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer a request: under overload with a refusal, which must cost far less than an answer, and no task."""
        if self._watch.leaving and not self.pipeline:
            cycle.keep_alive = False
        # To a client that does not read it is given as messages, which wait until it does.
        refusal = self._refusal(cycle.scope) if self._refusal and not self.flow.write_paused else None
        if refusal is None:
            super()._start_asgi_task(cycle, app)
        else:
            reply(cycle, *refusal)

    def on_response_complete(self) -> None:
        """As uvicorn has it, without a timer: the watch closes idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._departure.over:  # it took too long
            self.transport.close()
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusing:
            self._hand_over()
            return
        self.flow.resume_reading()
        self._note_between()

    def on_message_begin(self) -> None:
        self._place = HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped, as they would be taken for headers of a waiting request."""
        if self._place == HEAD:
            if len(self.headers) == MAX_HEADERS:
                self._head, self.refused = b"", Refused(TOO_MANY)
                raise self.refused
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
        length = _head_length(self._head)
        try:
            self._check_head(hosts, length)
            if chunked:
                check_coding(self.headers)
        except Refused as error:  # which the parser would replace
            self._head, self.refused = b"", error
            raise
        super().on_headers_complete()
        self._ends = None if chunked or length is None else self._begins + length
        self._place, self._head, self._unclaimed, self._small = BODY, b"", 0, 0

    def _check_head(self, hosts: int, length: int | None) -> None:
        """Refused if requests must not look like this; `length` is the head's where it is known."""
        if (version := self.parser.get_http_version()) not in VERSIONS:
            raise Refused(ODD_VERSION)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(f"expected one Host header, got {hosts or 'none'}")
        if len(self.pipeline) == MAX_WAITING:
            raise Refused(f"more than {MAX_WAITING} pipelined requests on one connection")
        if length is None and len(self._data) > MAX_HEAD:
            length = head_size(self.url, self.headers)
        if length is not None and length > MAX_HEAD:
            raise Refused(TOO_LONG)

    def on_body(self, body: bytes) -> None:
        self._unclaimed = 0
        if self._ends is not None:
            self._ends += len(body)
        else:  # in chunks
            self._small += CHUNK - len(body)
            if self._small > MAX_SMALL:
                self.refused = Refused(SMALL_CHUNKS)
                raise self.refused
        if not self.cycle.body:  # nothing has come yet, or uvicorn has passed it on
            self.cycle.body = _Pieces()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._place = BETWEEN
        if self._ends is not None and self._ends < len(self._data):  # the next request came with it
            self._head, self._begins = self._data[self._ends :], self._ends
        super().on_message_complete()
        if self.flow.read_paused:
            self.flow.resume_reading()  # or it would not be seen that the client leaves
        self._note_between()  # a body that came after its answer
