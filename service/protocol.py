"""HTTP/1.1 as uvicorn reads it with httptools, less what would not be ours: its words, and no limit on a head.

Heads that httptools refuses are read again by h11, which uvicorn brings along: it knows every method and every target,
so that what comes of them is the application's answer. It is too slow for everything else.
"""

import json
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import PROBLEM_TYPE, problem_document

MAX_HEAD = 2**16
"""Bytes of a request's line and headers; httptools alone would collect them without end."""

_BETWEEN, _HEAD, _BODY = range(3)


class Departure:
    """Whoever must know at once that a connection's client has left; one at a time, as its requests come in turn."""

    def __init__(self) -> None:
        self.over = False
        self.tell: Callable[[], None] | None = None


def departure(scope: Scope) -> Departure:
    """That of the connection on which a request came."""
    found: Departure = scope["state"]["msmlp_departure"]
    return found


class _Pieces:
    """What has come of a body, in the place of uvicorn's bytearray: pieces are put together once, one is not copied."""

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


class _Ours:
    """What both parsers' connections have: a departure, and a refusal in the words of all other errors."""

    app_state: dict[str, Any]
    transport: Any

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
        body = json.dumps(problem_document(status, "bad_request", "this is not HTTP/1.1", request_id)).encode()
        lines = (
            f"HTTP/1.1 {status} {status.phrase}",
            f"content-type: {PROBLEM_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.transport.close()


class _Patient(_Ours, H11Protocol):
    """A connection on which httptools has refused a head."""


class Protocol(_Ours, HttpToolsProtocol):
    """A connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = _BETWEEN
        self._head: bytes | bytearray = b""  # of the request being read, where it is known where that began
        self._head_size = 0

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._unset_keepalive_if_required()
        if self._place == _BETWEEN:
            self._head, self._head_size = data, len(data)
        elif self._place == _HEAD:
            self._head_size += len(data)
            if self._head:
                self._head = bytearray(self._head) if isinstance(self._head, bytes) else self._head
                self._head += data
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._place == _HEAD and self._head_size > MAX_HEAD:
            self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as wish:
                # A wish for another protocol is a request like any other, and so is what comes after it.
                data = data[wish.args[0] :]

    def _refuse(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not self._head or answering:
            self.send_400_response("")
            return
        patient = _Patient(self.config, self.server_state, self.app_state, self.loop)
        self.connections.discard(self)
        self.transport.set_protocol(patient)
        patient.connection_made(self.transport)
        patient.data_received(bytes(self._head))

    def on_message_begin(self) -> None:
        """The parser has seen a request's first byte."""
        self._place = _HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser has read a request's head."""
        super().on_headers_complete()
        self._place, self._head, self._head_size = _BODY, b"", 0  # where the next one begins in these bytes is unknown

    def on_body(self, body: bytes) -> None:
        """The parser has read a piece of a request's body."""
        if not self.cycle.body:  # uvicorn has handed on what was there, or nothing has come yet
            self.cycle.body = _Pieces()  # type: ignore[assignment]
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has read a request's end."""
        self._place = _BETWEEN
        super().on_message_complete()
