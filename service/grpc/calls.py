"""Around every request over gRPC: its row in the metrics, and errors as refusals."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from model.errors import MsmlpError
from service.body import SLICE
from service.grpc.refusals import INTERNAL, Refusal, refusal_of
from service.metrics import Metrics
from service.problems import CLIENT_CLOSED_REQUEST

T = TypeVar("T")
log = logging.getLogger("msmlp.grpc")


async def accounted(metrics: Metrics, method: str, arrival: float, work: Awaitable[T]) -> T | Refusal:
    """What comes of a request that arrived then (monotonic seconds)."""
    answer: T | Refusal
    status = CLIENT_CLOSED_REQUEST
    try:
        answer = await work
        status = HTTPStatus.OK
    except MsmlpError as error:
        answer = refusal_of(error)
        status = answer.status
    except Exception:
        # The last line: nothing below may fail without an answer and a row in the metrics.
        log.exception("%s failed", method)
        answer = INTERNAL
        status = answer.status
    finally:
        count(metrics, method, arrival, status)
    return answer


def count(metrics: Metrics, method: str, arrival: float, status: int) -> None:
    """A request has ended; `status` is what it would be over HTTP."""
    metrics.responded(f"grpc/{method}", int(status), time.monotonic() - arrival)


async def unhurried(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes: a little here, much where it keeps nobody waiting."""
    return work() if size <= SLICE else await asyncio.to_thread(work)
