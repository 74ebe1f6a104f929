"""Errors as the protocol has them."""

from http import HTTPStatus
from typing import Any

_BAD_REQUEST = (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY)


def oip_error(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    """The status and body of an error: what is wrong with a request's content is 400, all else as everywhere."""
    return HTTPStatus.BAD_REQUEST if status in _BAD_REQUEST else status, {"error": detail}
