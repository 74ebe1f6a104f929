"""A limit on what all bodies together hold in memory: places are taken only once a body was read."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import OverloadedError


class BodyMemory:
    """Counts the bytes of bodies from their arrival until their request is answered; plain ASGI.

    `limit` is in bytes; `shed` is told of every request that would pass it and is answered 429 instead.
    """

    def __init__(self, app: ASGIApp, limit: int, shed: Callable[[], None]) -> None:
        self._app, self._limit, self._shed = app, limit, shed
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b""))
            if self._held + size > self._limit:
                self._shed()
                raise OverloadedError(f"the bodies of all requests hold {self._held} of {self._limit} bytes")
            self._held += size
            mine += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= mine
