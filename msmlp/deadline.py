"""The body of a response, as long as its call has time left: httpx itself only bounds each silence."""

from collections.abc import AsyncIterator, Iterator

import httpx

from msmlp.retry import Attempts


class TimedStream(httpx.SyncByteStream):
    """Reads on from `stream`; raises ReadTimeout at the first bytes that come after the call's end."""

    def __init__(self, stream: httpx.SyncByteStream, attempts: Attempts) -> None:
        self._stream, self._attempts = stream, attempts

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if self._attempts.over:
                self.close()
                raise httpx.ReadTimeout("the answer took too long")
            yield chunk

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()


class AsyncTimedStream(httpx.AsyncByteStream):
    """`TimedStream` for asyncio."""

    def __init__(self, stream: httpx.AsyncByteStream, attempts: Attempts) -> None:
        self._stream, self._attempts = stream, attempts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            if self._attempts.over:
                await self.aclose()
                raise httpx.ReadTimeout("the answer took too long")
            yield chunk

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._stream.aclose()
