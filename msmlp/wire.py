"""Requests and responses as both clients write and read them; nothing here sends anything."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from msmlp.answer import Answer, StreamLine
from msmlp.errors import ServiceError
from msmlp.images import Images, encoded, read_images
from msmlp.model.errors import OptionError
from msmlp.options import as_text


def checked_url(url: str) -> str:
    """A service's address; OptionError when it is none."""
    try:
        parts = httpx.URL(url)
        sound = parts.scheme in ("http", "https") and parts.host
    except httpx.InvalidURL:
        sound = False
    if not sound:
        raise OptionError("url", f"{url!r} is no address of a service; an example: http://127.0.0.1:8000")
    return url


def classify_request(
    images: Images, options: Mapping[str, Any], request_id: str | None, *, stream: bool = False
) -> dict[str, Any]:
    """What httpx needs to build a `POST /classify`: one multipart form of images and options."""
    fields = as_text(options)
    if request_id is not None and not (request_id.isascii() and request_id.isprintable()):
        raise ServiceError(f"this cannot be sent: the request id {request_id!a}; allowed: ASCII text", code="not_sent")
    # The service asks for at least one part to see a form.
    files = [("images", (f"{i}", encoded(image))) for i, image in enumerate(read_images(images))]
    return {
        "method": "POST",
        "url": "classify",
        "data": {**fields, **({"stream": "true"} if stream else {})},
        "files": files,
        "headers": {} if request_id is None else {"X-Request-ID": request_id},
    }


def answer(response: httpx.Response) -> Answer:
    """The answer in a response that went well."""
    return Answer(document(response))


def document(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a response that went well."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _not_understood(response)
    return found


def stream_line(text: str, response: httpx.Response) -> StreamLine:
    """One line of a stream; raises ServiceError when it tells of one."""
    try:
        found = json.loads(text)
    except ValueError:
        raise _not_understood(response) from None
    if not isinstance(found, dict):
        raise _not_understood(response)
    if "code" in found and "detail" in found:
        raise ServiceError.of_problem(found)
    return StreamLine(found)


def failure(response: httpx.Response) -> ServiceError:
    """The error in a response, whose body was read."""
    seconds = _seconds(response.headers.get("retry-after", ""))
    try:
        problem = response.json()
        if response.status_code in (404, 405):  # the address is at fault, and only the caller knows it
            problem = {**problem, "detail": f"{response.request.url}: {problem['detail']}"}
        return ServiceError.of_problem(problem, seconds)
    except (ValueError, KeyError, TypeError):  # a proxy's page, or another service
        return ServiceError(
            f"{response.request.url} answers {response.status_code} {response.reason_phrase}",
            status=response.status_code,
            code="not_understood",
            retry_after=seconds,
        )


def unanswered(error: httpx.RequestError, url: str) -> ServiceError:
    """No answer came: the connection was refused or lost, or it took too long."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return ServiceError(f"{url} took too long to answer", code="timeout")
    if isinstance(error, httpx.LocalProtocolError):
        return ServiceError(f"this cannot be sent: {error}", code="not_sent")
    if isinstance(error, httpx.TransportError):
        return ServiceError(f"no answer from {url} ({error})", code="unreachable")
    return ServiceError(f"{url} answers, but not as msmlp does ({error})", code="not_understood")


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


def _not_understood(response: httpx.Response) -> ServiceError:
    text = f"{response.request.url} answers, but not as msmlp does"
    return ServiceError(text, status=response.status_code, code="not_understood")
