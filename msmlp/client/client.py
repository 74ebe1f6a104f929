"""`msmlp.Client` and `msmlp.AsyncClient`: a running service, called from Python."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any, Self, Unpack

import httpx

from msmlp.client.answer import Answer, ServiceError, StreamLine
from msmlp.client.request import Images, Options
from msmlp.client.transport import (
    Attempts,
    TimedStream,
    checked_url,
    classify_request,
    document,
    key_header,
    stream_line,
    successful,
    transport_errors,
)

_MODEL = {"method": "GET", "url": "model"}
_READY = {"method": "GET", "url": "readyz"}


class Client:
    """A running service. Use it from any number of threads; close it, or use it in `with`.

    Refused connections, 429 and 503 are retried, after the wait that the service asks for.

    Args:
        url: where the service is, as `http://127.0.0.1:8000`.
        api_key: the key that the service asks for; by default the variable MSMLP_API_KEY, "" for none.
        timeout: seconds a call may take, with all its attempts, waits and reading; a stream, to its last line. It is
            checked whenever bytes arrive, so a silent service can delay the end by one more such timeout.
        retries: attempts after the first.
        sleep, clock: replace waiting and the clock, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = checked_url(url)
        self._timeout, self._retries, self._sleep, self._clock = timeout, retries, sleep, clock
        self._http = httpx.Client(base_url=url, headers=key_header(api_key))

    def classify(self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]) -> Answer:
        """Classify one image or several: paths, encoded files, Pillow images, uint8 arrays [H, W, 3] or [n, H, W, 3].

        Raises:
            ServiceError: the service refused, or could not be reached in time.
            OSError, TypeError, ValueError: an image cannot be read or has the wrong type or shape.
        """
        return Answer(document(self._send(classify_request(images, options, request_id))))

    def stream(
        self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]
    ) -> Iterator[StreamLine]:
        """Like `classify`, but yields a line per image and exit as soon as it is reached.

        The first `next` sends the request.
        """
        return self._lines(classify_request(images, options, request_id, stream=True))

    def model(self) -> dict[str, Any]:
        """The service's description of its model: exits, costs, operating points."""
        return document(self._send(_MODEL))

    def ready(self) -> bool:
        """Whether the service is up and accepts images now; a single attempt."""
        try:
            self._send(_READY, retries=0)
        except ServiceError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self, request: dict[str, Any]) -> Iterator[StreamLine]:
        with closing(self._send(request, stream=True)) as response, transport_errors(self.url):
            for line in response.iter_lines():
                yield stream_line(line, response)

    def _send(self, request: dict[str, Any], *, stream: bool = False, retries: int | None = None) -> httpx.Response:
        attempts = Attempts(self._retries if retries is None else retries, self._timeout, self._clock)
        while True:
            try:
                with transport_errors(self.url):
                    built = self._http.build_request(**request, timeout=attempts.left)
                    response = self._http.send(built, stream=True)
                    response.stream = TimedStream(response.stream, attempts)
                    if not (stream and response.is_success):
                        response.read()
                return successful(response)
            except ServiceError as error:
                self._sleep(attempts.wait_after(error))


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors, to be awaited; one event loop each."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60,
        retries: int = 3,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = checked_url(url)
        self._timeout, self._retries, self._sleep, self._clock = timeout, retries, sleep, clock
        self._http = httpx.AsyncClient(base_url=url, headers=key_header(api_key))

    async def classify(self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]) -> Answer:
        """See `Client.classify`."""
        # Files are read and pixels compressed off the event loop.
        request = await asyncio.to_thread(classify_request, images, options, request_id)
        return Answer(document(await self._send(request)))

    async def stream(
        self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[StreamLine, None]:
        """See `Client.stream`; for `async for`."""
        request = await asyncio.to_thread(classify_request, images, options, request_id, stream=True)
        async with aclosing(await self._send(request, stream=True)) as response:
            with transport_errors(self.url):
                async for line in response.aiter_lines():
                    yield stream_line(line, response)

    async def model(self) -> dict[str, Any]:
        """See `Client.model`."""
        return document(await self._send(_MODEL))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            await self._send(_READY, retries=0)
        except ServiceError:
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(
        self, request: dict[str, Any], *, stream: bool = False, retries: int | None = None
    ) -> httpx.Response:
        attempts = Attempts(self._retries if retries is None else retries, self._timeout, self._clock)
        while True:
            try:
                with transport_errors(self.url):
                    built = self._http.build_request(**request, timeout=attempts.left)
                    response = await self._http.send(built, stream=True)
                    response.stream = TimedStream(response.stream, attempts)
                    if not (stream and response.is_success):
                        await response.aread()
                return successful(response)
            except ServiceError as error:
                await self._sleep(attempts.wait_after(error))
