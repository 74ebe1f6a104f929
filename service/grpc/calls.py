"""Around every request over gRPC: its row in the metrics, and errors as refusals."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar

from msmlp.model.errors import MsmlpError
from msmlp.service.account import RPC, Account, Accounts
from msmlp.service.body import SLICE
from msmlp.service.grpc.intake import Context
from msmlp.service.grpc.refusals import INTERNAL, Refusal, refusal_of
from msmlp.service.problems import CLIENT_CLOSED_REQUEST
from msmlp.service.request_id import sane_id

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
    return work() if size <= SLICE else await asyncio.to_thread(work)
