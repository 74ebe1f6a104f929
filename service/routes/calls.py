"""What routes that classify have in common."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.inference import Outcome

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first; ClientDisconnect then."""
    mine = asyncio.current_task()
    assert mine is not None
    gone = asyncio.create_task(_disconnected(request))
    # The work runs in the request's own task, as a task more for each request costs as much as writing its answer.
    waiting = True

    def leave(gone: "asyncio.Task[None]") -> None:
        if waiting:
            gone.exception()  # asked for, or asyncio would complain that nobody did
            mine.cancel()

    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else cancels this task, as an ending server does, is not to be taken for the client.
        if gone.done() and mine.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        waiting = False
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_timing(outcome: Outcome) -> str:
    """The header Server-Timing."""
    parts = {"decode": outcome.decode_seconds, "queue": outcome.queue_seconds, "compute": outcome.compute_seconds}
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items())
