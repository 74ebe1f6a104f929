"""How many requests may go on within one turn of the event loop: probes and refusals wait for its end."""

import asyncio
from collections import deque

MOST = 128
"""As many as clients of one process mostly have connections: under less load none waits here."""


class Turns:
    """After a rush, requests go on in their order, at most `most` a turn; use it from one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._taken = most, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def full(self) -> bool:
        """Take a place in this turn; True if there is none left, and the caller must `wait`."""
        self._taken += 1
        if self._taken == 1:
            asyncio.get_running_loop().call_soon(self._next)
        return self._taken > self._most

    async def wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        self._taken = 0
        while self._waiting and self._taken < self._most:
            turn = self._waiting.popleft()
            if not turn.done():  # its client has left
                turn.set_result(None)
                self._taken += 1
        if self._taken:
            asyncio.get_running_loop().call_soon(self._next)
