"""What is in progress over gRPC, which ends in its own way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from msmlp.service.errors import CUT, DrainingError


class Calls:
    """Of one process.

    Its port is to open once `opening` is set, and `listening` says that it has; once `closing` is set clients are sent
    elsewhere, and `closed` says that they know. Calls wait while they are not `flowing`; `open` are in progress.
    """

    def __init__(self) -> None:
        self.opening, self.listening = asyncio.Event(), asyncio.Event()
        self.closing, self.closed = asyncio.Event(), asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.open = 0
        self._limits: set[asyncio.Timeout] = set()
        self._cut = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request is in progress inside, until its answer is on its way."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """TimeoutError for what takes longer than `seconds` (0: no limit), DrainingError for what is cut."""
        try:
            async with asyncio.timeout(seconds or None) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if self._cut:
                raise DrainingError(CUT) from None
            raise

    def cut(self) -> None:
        """Nothing is computed any more for what is in progress."""
        self._cut = True
        for limit in self._limits:
            if not limit.expired():  # what is over at this moment cannot be rescheduled
                limit.reschedule(asyncio.get_running_loop().time())
