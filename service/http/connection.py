"""What both parsers' connections have in common, and the second of them, h11.

Heads that httptools refuses are read again with h11, which uvicorn brings along: it accepts every method, every target
and the body of an upgrade request, so that the application can answer them. It is too slow for everything else.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Literal

import h11
import httptools
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import PROBLEM_TYPE, problem_document
from msmlp.service.http.browsers import EVERYWHERE, HSTS
from msmlp.service.http.transports import unsent
from msmlp.service.http.watch import Phase, Seen, Watch
from msmlp.service.logs import sane_id
from msmlp.service.oip.model import is_oip, oip_error

MAX_HEAD = 2**16
"""Bytes of a request line and headers, or of trailers; httptools has no limit."""
TOO_LONG = f"a head, or trailers, of more than {MAX_HEAD} bytes"
MAX_HEADERS = 256
"""Of a head, or trailers; each costs a call. Servers in front of this one allow 100 or so."""
TOO_MANY = f"a head, or trailers, of more than {MAX_HEADERS} lines"
CHUNK = 128
"""Bytes of a chunk of a body: smaller ones may be sent, but not without end, as each costs a call."""
MAX_SMALL = 2**20
"""How many bytes chunks may be smaller than `CHUNK` in all, larger ones set against them: about 8,000 chunks of one."""
SMALL_CHUNKS = f"a body of too many chunks of fewer than {CHUNK} bytes"
ODD_CODING = "Transfer-Encoding: expected chunked alone"
VERSIONS = "1.0", "1.1"
ODD_VERSION = "expected HTTP/1.1, or 1.0"
"""The parsers take heads of HTTP/0.9 and 2.0 too, whose clients would not understand the answer."""

BETWEEN, HEAD, BODY = range(3)
"""Where in a request what comes next belongs."""

FULL = "too_many_connections", "too many connections are open"


class Departure:
    """Calls `tell` when nobody waits for an answer any more; one callback at a time, as requests are answered in turn.

    The client has left, or the request has taken too long: `reason` makes the error that says which. Requests find
    their connection's as `msmlp_departure` in the state of their scope.
    """

    def __init__(self) -> None:
        self.over = False
        # Not the error itself, which would hold what the frames that raised it do, such as bodies.
        self.reason: Callable[[], Exception] = ClientDisconnect
        self.tell: Callable[[], None] | None = None

    def end(self) -> None:
        self.over = True
        if self.tell is not None:
            self.tell()


class Refused(httptools.HttpParserError):
    """A head that no parser is to read again."""

    def __init__(self, detail: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(detail)
        self.status = status


def check_coding(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the body comes in chunks; Refused for lengths that parsers could disagree on, and other codings."""
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return False
    if any(name == b"content-length" for name, _ in headers):  # RFC 9112, 6.1
        raise Refused("Content-Length and Transfer-Encoding exclude each other")
    if codings != [b"chunked"]:
        raise Refused(ODD_CODING, HTTPStatus.NOT_IMPLEMENTED)
    return True


def head_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """About the bytes of a head."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def _nothing() -> None:
    pass


class _Lingering(asyncio.Protocol):
    """Drops what the client of a refused request still sends, until it has read the answer and closes.

    A connection that is closed with bytes unread is reset, and the client may lose the answer.
    """

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def resume_writing(self) -> None:
        self._connection.transport.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        del self._connection


class Connection:
    """Common to both parsers' connections: what the watch looks at, and refusals in the form of all other errors."""

    app_state: dict[str, Any]
    transport: Any
    flow: FlowControl
    cycle: Any
    pipeline: Any = ()
    scheme: Literal["http", "https"] | None
    seen: Seen
    read = 0
    kept = False
    """Whether another process has answered requests on it before."""
    refused: Refused | None = None
    """Why what is being read cannot be, if it is known."""

    def connection_made(self, transport: Any) -> None:
        self._departure = Departure()
        self._watch: Watch = self.app_state["msmlp_watch"]
        self.app_state = {**self.app_state, "msmlp_departure": self._departure}
        super().connection_made(transport)  # type: ignore[misc]
        self.transport.linger = self._linger_if_sending
        if not self._watch.opened(self):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, *FULL, sane_id(""))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        self._watch.closed(self)
        self._departure.end()
        # No cycle of references is left: a garbage collection, which would find it, comes rarely.
        self.refused, self.transport.linger = None, bool
        for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.on_response, cycle.body = _nothing, b""

    def resume_writing(self) -> None:
        if self.transport.go_on():
            super().resume_writing()  # type: ignore[misc]

    @property
    def place(self) -> int:
        """Of what comes next: BETWEEN, HEAD or BODY."""
        raise NotImplementedError

    @property
    def target(self) -> bytes:
        """The target of a head that is being read, as far as it is known."""
        return b""

    @property
    def phase(self) -> Phase:
        cycle, place = self.cycle, self.place
        if self.transport.get_write_buffer_size():
            return Phase.ANSWER
        if cycle is None:
            return Phase.IDLE if self.kept and place == BETWEEN else Phase.HEAD
        if cycle.response_complete and not self.pipeline:
            return (Phase.IDLE, Phase.HEAD, Phase.BODY)[place]
        # Where it is the application that does not want more, the client is not to blame.
        wanted = cycle.more_body and not (cycle.waiting_for_100_continue or self.flow.read_paused or self.pipeline)
        return Phase.BODY if wanted else Phase.REQUEST

    @property
    def between(self) -> bool:
        """Whether all requests that have come are answered, and nothing of another has come."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.pipeline and self.place == BETWEEN and not self.transport.is_closing()

    def _note_between(self) -> None:
        """To be called whenever that may have begun."""
        if self._watch.between is not None and self.between:
            self._watch.between(self)

    def shutdown(self) -> None:
        """Close it, once the request that is in progress is answered."""
        super().shutdown()  # type: ignore[misc]

    @property
    def turn(self) -> tuple[Any, int]:
        """Changes with every request that begins and every pipelined one that is answered."""
        return self.cycle, len(self.pipeline)

    @property
    def unanswered(self) -> bool:
        """Whether a request is in progress, and nothing of its answer sent."""
        return self.cycle is not None and not self.cycle.response_started

    @property
    def sent(self) -> int:
        """Bytes that the client's system took."""
        return int(self.transport.written - self.transport.get_write_buffer_size() - unsent(self.transport))

    @property
    def holds(self) -> bool:
        """Whether ending the request that is in progress gives memory back."""
        return self._departure.tell is not None

    def leave(self) -> None:
        """The last request that was read is to be the last here; its answer says so."""
        if self.cycle is not None and not (self.cycle.response_started or self.pipeline):
            self.cycle.keep_alive = False

    def late(self, error: Callable[[], MsmlpError]) -> None:
        """End the request that is in progress with such an error, and then the connection."""
        self._departure.reason = error
        self.leave()
        if self.cycle.more_body:
            self.transport.linger = self._linger
        self.cycle.message_event.set()
        self._departure.end()

    def refuse(self, status: HTTPStatus, code: str, detail: str) -> None:
        """Answer an incomplete or invalid request, and close."""
        self._answer(status, code, detail, self._watch.refused(status, detail))

    def _answer(self, status: HTTPStatus, code: str, detail: str, request_id: str) -> None:
        document, kind = problem_document(status, code, detail, request_id), PROBLEM_TYPE
        if is_oip(self.target.partition(b"?")[0].decode("latin-1")):
            document, kind = oip_error(status, detail)[1], "application/json"
        body = json.dumps(document).encode()
        lines = [
            f"HTTP/1.1 {status} {status.phrase}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            *(f"{name.lower()}: {value}" for name, value in EVERYWHERE.items()),
            "connection: close",
        ]
        if self.scheme == "https":
            lines.append(b": ".join(HSTS).decode())
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append("retry-after: 1")
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        if not (self._watch.ends(self) and self._linger()):
            self.transport.close()

    def _linger_if_sending(self) -> bool:
        """`_linger`, if the client still sends the body of a request that was already answered."""
        answered = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        return answered and self._watch.ends(self) and self._linger()

    def _linger(self) -> bool:
        """Close for writing, and for reading once the client has read; False if that cannot be."""
        lingers = not self.transport.is_closing() and self.transport.can_write_eof()
        if lingers:
            self.transport.write_eof()
            self.transport.set_protocol(_Lingering(self))
            self.transport.resume_reading()
        return bool(lingers)

    def send_400_response(self, msg: str) -> None:
        refused = self.refused or Refused("this is not HTTP/1.1")
        code = "bad_request" if refused.status == HTTPStatus.BAD_REQUEST else "not_implemented"
        self.refuse(refused.status, code, str(refused))


_BLANK = re.compile(rb"\n\r?\n")


def _check_lines(read: bytes | bytearray, most: int) -> None:
    """Refused if a head or trailers at the start of these bytes have more than `most` lines, blank one included."""
    blank = _BLANK.search(read)
    if read.count(b"\n", 0, blank.end() if blank else len(read)) > most:
        raise Refused(TOO_MANY)


class _Chunks(ChunkedReader):
    """h11's reader of chunked bodies, which takes ten times as long as httptools for each chunk."""

    small = 0

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:
            _check_lines(buf._data, MAX_HEADERS + 1)
        event = super().__call__(buf)
        if isinstance(event, h11.Data):
            self.small += CHUNK - len(event.data)
            if self.small > MAX_SMALL // 8:
                raise Refused(SMALL_CHUNKS)
        return event


class _Reader(h11.Connection):
    """h11's parser, as strict as ours. What it refuses is told in `refused`: uvicorn has one message for all."""

    refused: Refused | None = None

    def next_event(self) -> Any:
        try:
            if self.their_state is h11.IDLE:
                _check_lines(self.trailing_data[0], MAX_HEADERS + 2)
            event = super().next_event()
            if isinstance(event, h11.Request):
                if event.http_version.decode() not in VERSIONS:
                    raise Refused(ODD_VERSION)
                headers = [(name.lower(), value) for name, value in event.headers]
                if check_coding(headers):
                    self._reader = _Chunks()
                if head_size(event.target, headers) > MAX_HEAD:
                    raise Refused(TOO_LONG)
        except Refused as error:
            self.refused = error
            raise h11.RemoteProtocolError(str(error)) from None
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == HTTPStatus.NOT_IMPLEMENTED:
                self.refused = Refused(ODD_CODING, HTTPStatus.NOT_IMPLEMENTED)
            elif error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                self.refused = Refused(TOO_LONG)
            raise error.with_traceback(None) from None  # h11 holds it in the frames
        return event


_QUIET = logging.getLogger("msmlp.http.h11")
_QUIET.setLevel(logging.ERROR)  # what uvicorn warns of is counted, named and logged by `refuse`


class H11Connection(Connection, H11Protocol):
    """A connection on which httptools refused a head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _QUIET
        self.conn = self._reader = _Reader(h11.SERVER, MAX_HEAD)

    @property
    def place(self) -> int:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return BODY
        return HEAD if state is h11.IDLE and self.conn.trailing_data[0] else BETWEEN

    def data_received(self, data: bytes) -> None:
        self.read += len(data)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.more_body and not self.conn.trailing_data[0]:
            self.flow.resume_reading()  # or it would not be seen that the client leaves
        if self._watch.leaving:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reader.refused = None

    def leave(self) -> None:
        if self.cycle is not None and CLOSE_HEADER not in self.cycle.scope["headers"]:
            self.cycle.scope["headers"].append(CLOSE_HEADER)  # or uvicorn would close without saying so
        super().leave()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_between()

    def timeout_keep_alive_handler(self) -> None:
        """The watch closes idle connections."""

    def send_400_response(self, msg: str) -> None:
        """Refuse the request, unless its response has begun: that is cut short instead."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # the application still waits for the rest of the body
        else:
            self.refused = self._reader.refused
            super().send_400_response(msg)

    def _should_upgrade(self) -> bool:
        return False  # quietly
