"""Requests and responses as both clients write and read them; retries and timeouts of a call."""

import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from msmlp.client.answer import ServiceError, StreamLine
from msmlp.client.request import Images, as_text, encoded, read_images
from msmlp.model.errors import OptionError

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds; without Retry-After a wait doubles from the first to the longest, and is shortened by a random part."""


KEY_VARIABLE = "MSMLP_API_KEY"


def key_header(api_key: str | None = None) -> dict[str, str]:
    """The header that presents a key, by default that of the environment; OptionError for one that cannot be sent."""
    name, key = ("api_key", api_key) if api_key is not None else (KEY_VARIABLE, os.environ.get(KEY_VARIABLE, ""))
    if not (key.isascii() and key.isprintable() and " " not in key):  # a library's error would show it
        raise OptionError(name, "expected ASCII without blanks and line ends")
    return {"Authorization": f"Bearer {key}"} if key else {}


def checked_url(url: str) -> str:
    """A service's address; OptionError when it is not valid."""
    try:
        parts = httpx.URL(url)
        sound = parts.scheme in ("http", "https") and parts.host
    except httpx.InvalidURL:
        sound = False
    if not sound:
        raise OptionError("url", f"{url!r} is not the address of a service; expected one like http://127.0.0.1:8000")
    return url


def classify_request(
    images: Images, options: Mapping[str, Any], request_id: str | None, *, stream: bool = False
) -> dict[str, Any]:
    """What httpx needs to build a `POST /classify`: one multipart form of images and options."""
    fields = as_text(options)
    if request_id is not None and not (request_id.isascii() and request_id.isprintable()):
        raise ServiceError(f"this cannot be sent: the request id {request_id!a}; expected ASCII text", code="not_sent")
    # The service asks for at least one part to see a form.
    files = [("images", (f"{i}", encoded(image))) for i, image in enumerate(read_images(images))]
    return {
        "method": "POST",
        "url": "classify",
        "data": {**fields, **({"stream": "true"} if stream else {})},
        "files": files,
        "headers": {} if request_id is None else {"X-Request-ID": request_id},
    }


def document(response: httpx.Response, text: str | None = None) -> dict[str, Any]:
    """The JSON object in a successful response, or in one line of it."""
    try:
        found = response.json() if text is None else json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        problem = f"{response.request.url} does not answer like an msmlp service"
        raise ServiceError(problem, status=response.status_code, code="not_understood")
    return found


def stream_line(text: str, response: httpx.Response) -> StreamLine:
    """One line of a stream; ServiceError if the line reports an error."""
    found = document(response, text)
    if "code" in found and "detail" in found:
        raise ServiceError.of_problem(found)
    return StreamLine(found)


def successful(response: httpx.Response) -> httpx.Response:
    """The same response; ServiceError if it reports an error, when its body must have been read."""
    if response.is_success:
        return response
    seconds = _seconds(response.headers.get("retry-after", ""))
    try:
        problem = response.json()
        if response.status_code in (404, 405):  # the address is at fault, and only the caller knows it
            problem = {**problem, "detail": f"{response.request.url}: {problem['detail']}"}
        elif response.status_code == 401:
            problem = {**problem, "detail": f"{problem['detail']}; msmlp's clients take it from {KEY_VARIABLE}"}
        raise ServiceError.of_problem(problem, seconds)
    except (ValueError, KeyError, TypeError):  # a proxy's page, or another service
        raise ServiceError(
            f"{response.request.url} answers {response.status_code} {response.reason_phrase}",
            status=response.status_code,
            code="not_understood",
            retry_after=seconds,
        ) from None


@contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Turns httpx's errors into ServiceError: the connection was refused or lost, or the answer took too long."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
        raise ServiceError(f"{url} took too long to answer", code="timeout") from error
    except httpx.LocalProtocolError as error:
        raise ServiceError(f"this cannot be sent: {error}", code="not_sent") from error
    except httpx.TransportError as error:
        raise ServiceError(f"no answer from {url} ({error})", code="unreachable") from error
    except httpx.RequestError as error:
        raise ServiceError(f"{url} does not answer like an msmlp service ({error})", code="not_understood") from error


def _seconds(retry_after: str) -> float | None:
    """From now on; RFC 9110 has whole seconds or a date. None for anything else."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    # Of the three forms of a date one names no zone; all are UTC.
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


class Attempts:
    """The attempts of one call: at most `retries` after the first, none begun later than `timeout` seconds after it.

    `clock` gives seconds, `chance` numbers in [0, 1).
    """

    def __init__(
        self,
        retries: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._retries, self._made = retries, 0
        self._clock, self._chance = clock, chance
        self._end = clock() + timeout

    @property
    def left(self) -> float:
        """Seconds until the call's end, never less than a millisecond."""
        return max(0.001, self._end - self._clock())

    @property
    def over(self) -> bool:
        """Whether the call has taken all its time."""
        return self._clock() >= self._end

    def wait_after(self, error: ServiceError) -> float:
        """Seconds to wait before the next attempt; raises `error` when there is to be none."""
        again = error.code == "unreachable" or error.status in (429, 503)
        wait = error.retry_after
        if wait is None:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0**self._made) * (1 - self._chance() / 2)
        if not again or self._made >= self._retries or wait >= self._end - self._clock():
            raise error
        self._made += 1
        return wait


class TimedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Reads on from `stream`, of either kind; raises ReadTimeout at the first bytes that come after the call's end."""

    def __init__(self, stream: Any, attempts: Attempts) -> None:
        self._stream, self._attempts = stream, attempts

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if self._attempts.over:
                self.close()
                raise httpx.ReadTimeout("the answer took too long")
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            if self._attempts.over:
                await self.aclose()
                raise httpx.ReadTimeout("the answer took too long")
            yield chunk

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._stream.aclose()
