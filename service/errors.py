"""The service's own errors, and the one table from errors to HTTP responses."""

from http import HTTPStatus
from typing import Any, Literal

from msmlp.model.errors import (
    ConfigError,
    DataError,
    DeviceError,
    ImageTooLargeError,
    MsmlpError,
    OptionError,
    OutOfMemoryError,
    TrainingInterruptedError,
    TrainingStoppedError,
    UndecodableImageError,
    WeightsError,
)


class MalformedBodyError(MsmlpError):
    """The body does not match its content type."""


class BodyTooLargeError(MsmlpError):
    """The body has more bytes than allowed."""


class BodyTimeoutError(MsmlpError):
    """The body did not come in time."""


class TooManyImagesError(MsmlpError):
    """More images in one request than allowed."""


class TooManyPixelsError(MsmlpError):
    """More pixels to decode in one request than allowed."""


class UnsupportedMediaTypeError(MsmlpError):
    """A content type or encoding that is not supported."""


class UnknownModelError(MsmlpError):
    """A model or version other than the one served."""


class NoImagesError(MsmlpError):
    """A request without an image."""


class BadImagesError(MsmlpError):
    """Some images of a request cannot be classified, so it fails as a whole; `errors` is (index, error) of each."""

    def __init__(self, errors: list[tuple[int, MsmlpError]]) -> None:
        first = errors[0][1]
        super().__init__(
            str(first) if len(errors) == 1 else f"{len(errors)} images cannot be classified; the first: {first}"
        )
        self.errors = errors


class ExpiredError(MsmlpError):
    """No image of the request reached an exit by its deadline."""


class RetryableError(MsmlpError):
    """A request that may succeed after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class UnauthorizedError(MsmlpError):
    """No valid key."""


class RateLimitedError(RetryableError):
    """The limits of this key are used up."""


class OverloadedError(RetryableError):
    """No room for these images now; `reason` is the limit that was reached, for the metrics.

    `unbooked`, of an error raised on another thread: the wait and the seconds to book once it is on the event loop.
    """

    unbooked: tuple[float, float] | None = None

    def __init__(
        self, detail: str, retry_after: int = 1, reason: Literal["capacity", "wait", "door", "memory"] = "memory"
    ) -> None:
        super().__init__(detail, retry_after)
        self.reason = reason


class StartingError(RetryableError):
    """Not ready yet."""


class DrainingError(RetryableError):
    """Shutting down."""


CUT = "the service is shutting down, and had no more time for this request"


class CutError(MsmlpError):
    """The service has ended, and requests were cut for it."""


class EngineDownError(RetryableError):
    """The engine failed."""


class ShortOfMemoryError(RetryableError):
    """The process got no memory for this request."""

    def __init__(self, detail: str = "there is no memory for this request now") -> None:
        super().__init__(detail)


class BadWeightsError(MsmlpError):
    """The weights folder holds nothing that can be put in the place of what is served."""


class NoMemoryError(MsmlpError):
    """The new weights do not fit beside those served."""


class ReloadingError(MsmlpError):
    """Weights are being loaded already."""


class ReloadFailedError(RetryableError):
    """The processes with the new weights did not become ready."""


class UnansweredError(RetryableError):
    """The whole request took too long, though it is not the client that is waited for."""


CLIENT_CLOSED_REQUEST = 499
"""The client left before its answer; nginx's status, which dashboards know."""

PROBLEM_TYPE = "application/problem+json"
SERVER_FAILED = "the server failed"

STATUS: dict[type[MsmlpError], tuple[HTTPStatus, str]] = {
    MalformedBodyError: (HTTPStatus.BAD_REQUEST, "malformed_body"),
    UnauthorizedError: (HTTPStatus.UNAUTHORIZED, "unauthorized"),
    BodyTimeoutError: (HTTPStatus.REQUEST_TIMEOUT, "body_timeout"),
    BodyTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"),
    TooManyImagesError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_images"),
    TooManyPixelsError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_pixels"),
    ImageTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_large"),
    UnsupportedMediaTypeError: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
    UnknownModelError: (HTTPStatus.NOT_FOUND, "unknown_model"),
    NoImagesError: (HTTPStatus.UNPROCESSABLE_ENTITY, "no_images"),
    UndecodableImageError: (HTTPStatus.UNPROCESSABLE_ENTITY, "undecodable_image"),
    OptionError: (HTTPStatus.UNPROCESSABLE_ENTITY, "bad_option"),
    ExpiredError: (HTTPStatus.GATEWAY_TIMEOUT, "expired"),
    OverloadedError: (HTTPStatus.TOO_MANY_REQUESTS, "overloaded"),
    RateLimitedError: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limited"),
    StartingError: (HTTPStatus.SERVICE_UNAVAILABLE, "starting"),
    DrainingError: (HTTPStatus.SERVICE_UNAVAILABLE, "draining"),
    EngineDownError: (HTTPStatus.SERVICE_UNAVAILABLE, "engine_down"),
    ShortOfMemoryError: (HTTPStatus.SERVICE_UNAVAILABLE, "no_memory"),
    UnansweredError: (HTTPStatus.SERVICE_UNAVAILABLE, "unanswered"),
    BadWeightsError: (HTTPStatus.UNPROCESSABLE_ENTITY, "bad_weights"),
    NoMemoryError: (HTTPStatus.INSUFFICIENT_STORAGE, "insufficient_memory"),
    ReloadingError: (HTTPStatus.CONFLICT, "reloading"),
    ReloadFailedError: (HTTPStatus.SERVICE_UNAVAILABLE, "reload_failed"),
    # These do not occur while serving; if one does, it is the server's fault.
    **dict.fromkeys(
        (
            *(ConfigError, DataError, WeightsError, DeviceError, OutOfMemoryError, CutError),
            *(TrainingStoppedError, TrainingInterruptedError),
        ),
        (HTTPStatus.INTERNAL_SERVER_ERROR, "internal"),
    ),
}
"""Every error class that is raised, except BadImagesError: that takes the status of its first image."""


def problem(error: MsmlpError, request_id: str) -> tuple[HTTPStatus, dict[str, Any]]:
    """The status and the problem+json document (RFC 9457) of an error."""
    leaf = error.errors[0][1] if isinstance(error, BadImagesError) else error
    status, code = STATUS[type(leaf)]
    detail = str(error) if status != HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_FAILED
    document = problem_document(status, code, detail, request_id)
    if isinstance(error, BadImagesError):
        document["errors"] = [
            {"index": index, "code": STATUS[type(each)][1], "detail": str(each)} for index, each in error.errors
        ]
    return status, document


def problem_document(status: HTTPStatus, code: str, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
