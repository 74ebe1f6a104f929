"""Bounds the memory that messages take.

gRPC collects a message in memory, up to `--max-body-bytes`, as soon as a handler reads it. So only a few calls read at
a time; a message that has arrived counts against `--max-bodies-bytes`, as bodies over HTTP do.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError, OverloadedError
from msmlp.service.service import ByteBudget

TURN_SECONDS = 30
"""How long a call may wait for its turn."""

ARRIVAL_SECONDS = 30
"""How long its message may then take: other calls wait for a slow client."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Intake:
    """Reads the messages of one server."""

    def __init__(self, budget: ByteBudget, max_bytes: int) -> None:
        self._budget, self._max_bytes = budget, max_bytes
        self._most = max(1, budget.limit // max_bytes)
        self._turns = asyncio.Semaphore(self._most)
        self._streams = 0

    @asynccontextmanager
    async def message(self, context: Context) -> AsyncIterator[bytes]:
        """The one message of a call, counted inside.

        Raises:
            MalformedBodyError, BodyTooLargeError, OverloadedError
        """
        await self._turn()
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                content = await context.read()
        except TimeoutError:
            raise MalformedBodyError(f"the message did not arrive within {ARRIVAL_SECONDS} s") from None
        finally:
            self._turns.release()
        if not isinstance(content, bytes):  # gRPC refused the call itself, or the client sent nothing
            raise BodyTooLargeError(f"no message was sent, or it has more than {self._max_bytes} bytes")
        with self._budget.holding(len(content)):
            yield content

    async def _turn(self) -> None:
        """Take one of the turns, waiting for it if need be; OverloadedError when none becomes free."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise OverloadedError(f"{self._most} calls are sending their messages, which is the most allowed") from None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A stream is open inside. It always reads, so there are at most as many as calls that may.

        Raises:
            OverloadedError
        """
        if self._streams == self._most:
            raise OverloadedError(f"{self._streams} streams are open, which is the most allowed")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
