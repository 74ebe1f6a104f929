"""What routes that classify have in common."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.inference import Outcome
from service.protocol import departure

T = TypeVar("T")


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


def server_timing(outcome: Outcome) -> str:
    """The header Server-Timing."""
    parts = {"decode": outcome.decode_seconds, "queue": outcome.queue_seconds, "compute": outcome.compute_seconds}
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items())
