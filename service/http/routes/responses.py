"""What routes that classify have in common."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from msmlp.service.http.protocol import departure
from msmlp.service.telemetry.record import Account

T = TypeVar("T")

NO_HEADERS: dict[str, str] = {}


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first; ClientDisconnect then."""
    mine = asyncio.current_task()
    assert mine is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        mine.cancel()

    # The work runs in the request's own task, and the connection calls: a task that waits for the client's departure
    # would cost as much as writing the answer.
    connection = departure(request.scope)
    if connection.over:
        work.close()
        raise ClientDisconnect
    connection.tell = leave
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else cancels this task, as an ending server does, is not to be taken for the client.
        if gone and mine.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        connection.tell = None


class Sent(Response):
    """An answer with its headers as they are sent: Starlette's way to them costs as much as the answer."""

    def __init__(self, body: bytes, media_type: str, account: Account, headers: dict[str, str] = NO_HEADERS) -> None:
        self.status_code, self.body, self.background = 200, body, None
        given = {"content-length": str(len(body)), "content-type": media_type, "server-timing": _timing(account)}
        self.raw_headers = [(name.encode(), value.encode()) for name, value in (given | headers).items()]


def _timing(account: Account) -> str:
    seconds = account.decode_seconds, account.queue_seconds, account.compute_seconds
    return "decode;dur={:.3f}, queue;dur={:.3f}, compute;dur={:.3f}".format(*(1e3 * each for each in seconds))
