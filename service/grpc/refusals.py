"""Errors as gRPC has them: a code, the same words as over REST, and when to come again."""

from dataclasses import dataclass
from http import HTTPStatus

import grpc

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import RetryableError, problem
from msmlp.service.oip.errors import oip_error

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
