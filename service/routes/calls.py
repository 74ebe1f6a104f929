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
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_timing(outcome: Outcome) -> str:
    """The header Server-Timing."""
    parts = {"decode": outcome.decode_seconds, "queue": outcome.queue_seconds, "compute": outcome.compute_seconds}
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items())
