"""OpenAPI examples: requests that work, a real answer, and every error as it is sent."""

from http import HTTPStatus
from typing import Any

from msmlp.model.errors import DeviceError, ImageTooLargeError, MsmlpError, OptionError, UndecodableImageError
from msmlp.service.errors import (
    BadImagesError,
    BodyTooLargeError,
    DrainingError,
    EngineDownError,
    ExpiredError,
    MalformedBodyError,
    NoImagesError,
    OverloadedError,
    StartingError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
    problem,
    problem_document,
)

REQUEST_ID = "92b0c0c687884cfab2c1a3dc10b18646"

# A yellow square of 8 x 8 pixels.
PNG_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAE0lEQVR42mP8f4YBK2BiYBhKEgBrGAHbZAj7BwAAAABJRU5ErkJggg=="

JSON_REQUESTS: dict[str, dict[str, Any]] = {
    "an image": {"value": {"images": [PNG_BASE64]}},
    "two images under a budget": {
        "value": {"images": [PNG_BASE64, PNG_BASE64], "budget_gflops": 0.012, "min_exit": 2, "top_k": 3}
    },
    "anytime": {"value": {"images": [PNG_BASE64], "accuracy_floor": 0.5, "deadline_ms": 50, "min_exit": 1}},
}


def _stage(stage: int, label: str, score: float, **times: float) -> dict[str, Any]:
    return {"stage": stage, "score": score, "confidence": score, "label": label, **times, "batch_size": 1}


# Of weights/cifar10-s and examples/cat.jpg with top_k=2.
ANSWER: dict[str, Any] = {
    "request_id": REQUEST_ID,
    "model": {"name": "cifar10-s", "version": "a65518dd7c93"},
    "operating_point": {
        "name": "balanced",
        "source": "default",
        "thresholds": [0.9652883112430573, 0.6747980415821075],
        "expected_accuracy": 0.874,
        "expected_gflops": 0.012313361804800001,
    },
    "results": [
        {
            "index": 0,
            "label": "cat",
            "class_id": 3,
            "confidence": 0.8128975,
            "score": 0.8128975,
            "top_k": [
                {"label": "cat", "class_id": 3, "probability": 0.8128975},
                {"label": "deer", "class_id": 4, "probability": 0.0999618},
            ],
            "exit": 2,
            "exits": 3,
            "reason": "confident",
            "gflops": 0.009097472,
            "degraded": False,
            "stages": [
                _stage(1, "deer", 0.38472801, queue_ms=0.531, compute_ms=1.48),
                _stage(2, "cat", 0.8128975, queue_ms=0.276, compute_ms=1.942),
            ],
            "latency_ms": 7.206,
        }
    ],
    "latency_ms": 7.804,
    "throughput_images_per_second": 6.0,
}
STREAM_LINE: dict[str, Any] = {
    "request_id": ANSWER["request_id"],
    **ANSWER["results"][0],
    "final": True,
    "operating_point": ANSWER["operating_point"],
}

_ERRORS: tuple[MsmlpError, ...] = (
    MalformedBodyError("the body is not JSON"),
    BodyTooLargeError("the body has 70000000 bytes; at most 67108864 are allowed"),
    TooManyImagesError("1200 images in one request; at most 1024 are allowed"),
    BadImagesError([(0, ImageTooLargeError("image is 10000x10000 = 100000000 pixels, the limit is 32000000"))]),
    UnsupportedMediaTypeError("content type 'text/html' is not supported; expected image/png, ..."),
    BadImagesError([(1, UndecodableImageError("not a readable image; formats: PNG, JPEG, WEBP, BMP, GIF"))]),
    OptionError("max_exit", "4 is out of range; expected 1 to 3"),
    NoImagesError("the request has no image"),
    OverloadedError("the service is full: 1020 of 1024 images in flight, 8 more requested", retry_after=2),
    DeviceError("never shown"),
    StartingError("the service is starting: stages are being warmed up"),
    DrainingError("the service is shutting down"),
    EngineDownError("the engine is down"),
    ExpiredError("no image reached an exit by its deadline"),
)


_PATH_ERRORS = (
    (HTTPStatus.NOT_FOUND, "not_found", "no such path"),
    (HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "method not allowed; expected one of POST"),
)

PROBLEMS: dict[int, dict[str, dict[str, Any]]] = {}
"""By status, and there by code."""
for _document in (
    *(problem(error, REQUEST_ID)[1] for error in _ERRORS),
    *(problem_document(*error, REQUEST_ID) for error in _PATH_ERRORS),
):
    PROBLEMS.setdefault(_document["status"], {})[_document["code"]] = {"value": _document}
