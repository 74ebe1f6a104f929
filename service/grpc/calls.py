"""Errors as gRPC has them: a code, the same words as over REST, and when to come again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import grpc

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import CLIENT_CLOSED_REQUEST, RetryableError, problem
from msmlp.service.grpc.intake import Context
from msmlp.service.logs import sane_id
from msmlp.service.oip.model import oip_error
from msmlp.service.telemetry.record import RPC, Account, Accounts

CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    # Not RESOURCE_EXHAUSTED, on which clients come again: what is too large now is so later.
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
}
"""From REST's statuses, which also stand in the metrics."""


SMALL_BYTES = 2**16
"""Messages up to this size are handled on the event loop: a thread costs more."""


@dataclass(frozen=True)
class Refusal:
    """What a client is told instead of an answer; `status` is REST's, `retry_after` in seconds."""

    status: int
    detail: str
    retry_after: int | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC's own name for when to come again."""
        return () if self.retry_after is None else (("retry-pushback-ms", str(self.retry_after * 1000)),)


INTERNAL = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed")


def refusal_of(error: MsmlpError) -> Refusal:
    """Of a known error."""
    status, document = problem(error, "")
    status_of_protocol, body = oip_error(status, document["detail"])
    retry_after = error.retry_after if isinstance(error, RetryableError) else None
    return Refusal(status_of_protocol, body["error"], retry_after)


async def refuse(context: "grpc.aio.ServicerContext[bytes, bytes]", refusal: Refusal) -> None:
    """End a call with it."""
    await context.abort(CODES[HTTPStatus(refusal.status)], refusal.detail, refusal.metadata)


# FROM service/grpc/calls.py:
# Around every request over gRPC: its row in the metrics, and errors as refusals.

T = TypeVar("T")
log = logging.getLogger("msmlp.grpc")


def new_account(method: str, context: Context) -> Account:
    """Of a request that has just come; its id is its own as long as the client's could not be read."""

    def headers() -> Mapping[str, str]:
        return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}

    return Account(sane_id(""), time.monotonic(), RPC, f"grpc/{method}", headers)


async def accounted(accounts: Accounts, account: Account, work: Awaitable[T]) -> T | Refusal:
    """What comes of a request; the status in its account is what it would be over HTTP."""
    answer: T | Refusal
    with accounts.open(account):
        account.status = CLIENT_CLOSED_REQUEST
        try:
            answer = await work
            account.status = HTTPStatus.OK
        except MsmlpError as error:
            answer = refusal_of(error)
            account.status = answer.status
        except Exception:
            # The last line: nothing below may fail without an answer and a row in the metrics.
            log.exception("%s failed", account.route)
            answer = INTERNAL
            account.status = answer.status
    return answer


async def unhurried(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes: a little here, much where it keeps nobody waiting."""
    return work() if size <= SMALL_BYTES else await asyncio.to_thread(work)
