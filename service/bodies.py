"""What HTTP bodies hold in memory: places are taken only once a body was read."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msmlp.service.memory import Memory


class BodyMemory:
    """Counts the bytes of bodies from their arrival until their request is answered; plain ASGI.

    A request that would pass the limit is answered 429.
    """

    def __init__(self, app: ASGIApp, memory: Memory) -> None:
        self._app, self._memory = app, memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b""))
            self._memory.take(size)
            mine += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._memory.give_back(mine)
