"""How the routes answer: results with their headers, errors in the form that the path's clients read."""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import (
    CLIENT_CLOSED_REQUEST,
    PROBLEM_TYPE,
    SERVER_FAILED,
    RetryableError,
    ShortOfMemoryError,
    UnauthorizedError,
    problem,
    problem_document,
)
from msmlp.service.http.connection import Departure
from msmlp.service.oip.model import is_oip, oip_error
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord

T = TypeVar("T")

NO_HEADERS: dict[str, str] = {}
_HTTP_DETAILS = {
    HTTPStatus.NOT_FOUND: "no such path; images go to POST /classify, and /docs lists the others",
    HTTPStatus.METHOD_NOT_ALLOWED: "method not allowed; expected one of {allowed}",
}


_ALLOWED = {"GET": "GET, HEAD", "PUT": "POST, PUT"}
"""What is allowed where Starlette found a route with this method: it looks no further, and does not know HEAD."""


async def service_of(request: Request) -> Service:
    """The service behind a request; async, as FastAPI would run a plain dependency in a thread."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(service_of)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first, or it takes too long.

    Raises:
        ClientDisconnect, UnansweredError: for those.
    """
    mine = asyncio.current_task()
    assert mine is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        if not gone:  # one that is late may leave as well
            gone = True
            mine.cancel()

    # The work runs in the request's own task and the connection calls back: a second task that waits for the client to
    # leave would cost as much as writing the answer.
    connection: Departure = request.scope["state"]["msmlp_departure"]
    if connection.over:
        work.close()
        raise connection.reason()
    connection.tell = leave
    try:
        return await work
    except asyncio.CancelledError:
        # Others cancel this task too, as a stopping server does.
        if gone and mine.uncancel() == 0:
            raise connection.reason() from None
        raise
    finally:
        connection.tell = None


async def parsed(request: Request, kind: str, size: int, work: Callable[[], T]) -> T:
    """The result of reading `size` bytes of a request, once it is their turn: Parser.run, while the client waits."""
    service = await service_of(request)
    return await while_connected(request, service.parser.run(kind, size, work))


class Sent(Response):
    """An answer with its headers as they are sent: building them Starlette's way costs as much as the answer."""

    def __init__(
        self, body: bytes, media_type: str, record: RequestRecord, headers: dict[str, str] = NO_HEADERS
    ) -> None:
        self.status_code, self.body, self.background = 200, body, None
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.head = (
            f"content-length: {len(body)}\r\ncontent-type: {media_type}\r\n"
            f"server-timing: decode;dur={1e3 * record.decode_seconds:.3f}, queue;dur={1e3 * record.queue_seconds:.3f}, "
            f"compute;dur={1e3 * record.compute_seconds:.3f}\r\n{more}"
        )

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        lines = (line.partition(": ") for line in self.head.splitlines())
        return [(name.encode(), value.encode()) for name, _, value in lines]


def error_response(scope: Scope, error: Exception) -> Response:
    """Any error, in the form that the path's clients read; of the server's own faults they learn nothing."""
    if isinstance(error, ClientDisconnect):
        # Only the metrics see this status, which is not a client's mistake there.
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    request_id, headers = scope["msmlp_record"].request_id, {}
    if isinstance(error, MemoryError):
        error = ShortOfMemoryError()
    if isinstance(error, MsmlpError):
        status, document = problem(error, request_id)
        if isinstance(error, RetryableError):
            headers = {"Retry-After": str(error.retry_after)}
        elif isinstance(error, UnauthorizedError):
            headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, HTTPException):
        status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        if (found := headers.get("Allow")) in _ALLOWED:
            headers["Allow"] = _ALLOWED[found]
        detail = _HTTP_DETAILS.get(status, status.description or status.phrase).format(allowed=headers.get("Allow"))
        if status == HTTPStatus.NOT_FOUND and error.detail != status.phrase:
            detail = error.detail
        document = problem_document(status, status.phrase.lower().replace(" ", "_"), detail, request_id)
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        document = problem_document(status, "internal", SERVER_FAILED, request_id)
    if is_oip(scope["path"]):
        oip_status, body = oip_error(status, document["detail"])
        return JSONResponse(body, status_code=oip_status, headers=headers)
    return JSONResponse(document, status_code=status, headers=headers, media_type=PROBLEM_TYPE)
