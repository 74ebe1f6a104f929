"""How the routes answer: results with their headers, errors in the form that the path's clients read."""

import asyncio
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import CLIENT_CLOSED_REQUEST, PROBLEM_TYPE, RetryableError, problem, problem_document
from msmlp.service.http.protocol import departure
from msmlp.service.oip.model import is_oip, oip_error
from msmlp.service.service import Service
from msmlp.service.telemetry.record import Account

T = TypeVar("T")

NO_HEADERS: dict[str, str] = {}


async def service_of(request: Request) -> Service:
    """The service behind a request; async, as FastAPI would run a plain dependency in a thread."""
    service: Service = request.app.state.service
    return service


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first; ClientDisconnect then."""
    mine = asyncio.current_task()
    assert mine is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        mine.cancel()

    # The work runs in the request's own task and the connection calls back: a second task that waits for the client to
    # leave would cost as much as writing the answer.
    connection = departure(request.scope)
    if connection.over:
        work.close()
        raise ClientDisconnect
    connection.tell = leave
    try:
        return await work
    except asyncio.CancelledError:
        # Others cancel this task too, as a stopping server does.
        if gone and mine.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        connection.tell = None


class Sent(Response):
    """An answer with its headers as they are sent: building them Starlette's way costs as much as the answer."""

    def __init__(self, body: bytes, media_type: str, record: Account, headers: dict[str, str] = NO_HEADERS) -> None:
        self.status_code, self.body, self.background = 200, body, None
        given = {"content-length": str(len(body)), "content-type": media_type, "server-timing": _timing(record)}
        self.raw_headers = [(name.encode(), value.encode()) for name, value in (given | headers).items()]


def _timing(record: Account) -> str:
    seconds = record.decode_seconds, record.queue_seconds, record.compute_seconds
    return "decode;dur={:.3f}, queue;dur={:.3f}, compute;dur={:.3f}".format(*(1e3 * each for each in seconds))


def error_response(request: Request, error: MsmlpError) -> Response:
    """A known error."""
    status, document = problem(error, request.scope["msmlp_account"].request_id)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, RetryableError) else None
    return problem_response(request.scope["path"], status, document, headers)


def gone_response() -> Response:
    """For a client that has left: only the metrics see its status, which is not a client's mistake there."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def internal_error(scope: Scope) -> Response:
    """The server's own fault; the client learns nothing more."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    document = problem_document(status, "internal", "the server failed", scope["msmlp_account"].request_id)
    return problem_response(scope["path"], status, document)


def problem_response(
    path: str, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem document as problem+json; under /v2 as the Open Inference Protocol's `{"error"}`."""
    if is_oip(path):
        status, error = oip_error(status, document["detail"])
        return JSONResponse(error, status_code=status, headers=headers)
    return JSONResponse(document, status_code=status, headers=headers, media_type=PROBLEM_TYPE)
