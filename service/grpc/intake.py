"""How messages are let in, so that what gRPC holds of them is bounded.

gRPC collects a message in memory, up to `--max-body-bytes`, as soon as somebody waits for it. So only a few calls wait
for theirs at the same time; what has arrived counts against `--max-bodies-bytes` as bodies over HTTP do.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import grpc

from msmlp.service.byte_budget import Memory
from msmlp.service.errors import BodyTooLargeError, MalformedBodyError, OverloadedError

TURN_SECONDS = 30
"""How long a call may wait for its turn."""

ARRIVAL_SECONDS = 30
"""How long its message may take then: a slow client keeps others waiting."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Intake:
    """Of one server."""

    def __init__(self, memory: Memory, max_bytes: int) -> None:
        self._memory, self._max_bytes = memory, max_bytes
        self._most = max(1, memory.limit // max_bytes)
        self._turns = asyncio.Semaphore(self._most)
        self._streams = 0

    @asynccontextmanager
    async def message(self, context: Context) -> AsyncIterator[bytes]:
        """The one message of a call, held inside.

        Raises:
            MalformedBodyError, BodyTooLargeError, OverloadedError
        """
        await self._turn()
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                content = await context.read()
        except TimeoutError:
            raise MalformedBodyError(f"the message has not come within {ARRIVAL_SECONDS} s") from None
        finally:
            self._turns.release()
        if not isinstance(content, bytes):  # gRPC has refused the call by itself, or the client has sent nothing
            raise BodyTooLargeError(f"there is no message, or it has more than {self._max_bytes} bytes")
        with self._memory.holding(len(content)):
            yield content

    async def _turn(self) -> None:
        """Wait for one of the turns, which is to be released; OverloadedError where none becomes free."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise OverloadedError(f"{self._most} calls wait for their message, no more may") from None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A stream is open inside: it always waits for a message, so there are no more than calls that may.

        Raises:
            OverloadedError
        """
        if self._streams == self._most:
            raise OverloadedError(f"{self._streams} streams are open, no more are allowed")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def holding(self, content: bytes) -> AbstractContextManager[None]:
        """A message of a stream is held inside; OverloadedError."""
        return self._memory.holding(len(content))
