"""What the OpenAPI document says beyond what FastAPI sees in the code: bodies, options, headers, errors, examples."""

from typing import Any

from msmlp.service.errors import PROBLEM_TYPE
from msmlp.service.http import examples
from msmlp.service.http.body import RAW_TYPES
from msmlp.service.http.schemas import Problem, StreamLine, StreamProblem

DESCRIPTION = """\
Image classification that spends compute only where an image needs it.

Every error, those of unknown paths (404) and methods (405, with `Allow`) too, is `application/problem+json` in the
shape `Problem`. Every answer carries `X-Request-ID`: the request's own, if it is 1 to 64 of `A-Z a-z 0-9 . _ -`,
else a new one.
"""

Documented = dict[str, Any]


def _reference(model: type) -> Documented:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _header(description: str, schema: Documented) -> Documented:
    return {"description": description, "required": True, "schema": schema}


_REQUEST_ID = _header("The request's own id if it is sane, else a new one", {"type": "string"})
_RETRY_AFTER = _header("Seconds after which to come again", {"type": "integer", "minimum": 1, "maximum": 60})
_SERVER_TIMING = {
    "description": "Milliseconds of decoding, and of the longest queueing and compute of any image; not with streams",
    "schema": {"type": "string"},
    "example": "decode;dur=1.847, queue;dur=6.033, compute;dur=12.583",
}
_PROBLEM_TEXTS = {
    400: "Malformed body",
    404: "No such path",
    405: "Not a method of this path; Allow names those that are",
    413: "Too many bytes, pixels or images",
    415: "Content type or content encoding not read here",
    422: "Undecodable image, no image, or bad option (names it and the allowed range)",
    429: "Shed: no places now",
    500: "The server failed",
    503: "Starting, draining or engine down",
    504: "Every image expired before it reached an exit",
}


def _problem(status: int) -> Documented:
    headers = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else {}
    content = {"schema": _reference(Problem), "examples": examples.PROBLEMS[status]}
    return {"description": _PROBLEM_TEXTS[status], "headers": headers, "content": {PROBLEM_TYPE: content}}


PROBLEMS: dict[int | str, Documented] = {status: _problem(status) for status in _PROBLEM_TEXTS}


def complete(document: Documented) -> None:
    """Add what holds for every route, and the schemas that no route names, in place of FastAPI's own error shapes."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (Problem, StreamLine, StreamProblem):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(described.pop("$defs", {}))
        schemas[model.__name__] = described
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].setdefault("500", PROBLEMS[500])
            for status, response in operation["responses"].items():
                operation["responses"][status] = {
                    **response,
                    "headers": {"X-Request-ID": _REQUEST_ID, **response.get("headers", {})},
                }
    # No operation answers these, so no operation can list them.
    document["components"]["responses"] = {"NotFound": PROBLEMS[404], "MethodNotAllowed": PROBLEMS[405]}


_GFLOPS, _SHARE = {"type": "number", "minimum": 0}, {"type": "number", "minimum": 0, "maximum": 1}
_WHOLE, _FLAG = {"type": "integer", "minimum": 1, "maximum": 10**9}, {"type": "boolean"}
_MILLISECONDS = {"type": "number", "minimum": 0, "maximum": 10**9}
_OPTIONS: dict[str, tuple[Documented, str]] = {
    "thresholds": (
        {"type": "array", "items": _SHARE},
        "K - 1 numbers in [0, 1], as 0.9,0.8: an image leaves at exit i when its score ≥ thresholds[i]; 0 always "
        "leaves, 1 never does. A selector: give at most one of thresholds, policy, budget_gflops, min_accuracy",
    ),
    "policy": ({"type": "string"}, "Name of an operating point; see GET /model. A selector"),
    "budget_gflops": (_GFLOPS, "The best operating point whose mean cost is at most this. A selector"),
    "min_accuracy": (_SHARE, "The cheapest operating point expected to reach this. A selector"),
    "max_gflops": (_GFLOPS, "Hard cap an image: no stage is entered that would pass it"),
    "accuracy_floor": (_SHARE, "Brown-out stays at or above this expected accuracy; not with thresholds"),
    "deadline_ms": (
        _MILLISECONDS,
        "Aim to answer within so many milliseconds of arrival, with the best exit reached; best effort",
    ),
    "min_exit": (_WHOLE, "1...K: no image leaves before this exit; outranks the deadline"),
    "max_exit": (_WHOLE, "1...K: every image has left after this exit"),
    "top_k": (_WHOLE, "Classes listed an image; 5 without"),
    "degrade": (_FLAG, "false: brown-out may not change this request's thresholds"),
    "stream": (_FLAG, "true: application/x-ndjson, one line an image and exit as it lands"),
}
_PROPERTIES = {name: {**schema, "description": text} for name, (schema, text) in _OPTIONS.items()}
_BINARY = {"type": "string", "format": "binary", "description": "An encoded image; its content decides what it is"}
_BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "Base64 (RFC 4648, section 4, padded), also as a data: URL; white space is ignored",
}


def _images(item: Documented, **more: Any) -> Documented:
    images = {"type": "array", "minItems": 1, "items": item, "description": "One image or several"}
    properties = {"images": images, **_PROPERTIES}
    return {
        "schema": {"type": "object", "required": ["images"], "properties": properties, "additionalProperties": False},
        **more,
    }


CLASSIFY_OPENAPI: Documented = {
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": text, "explode": False}
        for name, (schema, text) in _OPTIONS.items()
    ],
    "requestBody": {
        "description": "The image itself; or a form with parts called images (image is accepted too) and options as "
        "fields; or JSON. An option given twice, in whatever places, is an error. No Content-Encoding is read.",
        "required": True,
        "content": {
            **{kind: {"schema": _BINARY} for kind in RAW_TYPES},
            "multipart/form-data": _images(_BINARY),
            "application/json": _images(_BASE64, examples=examples.JSON_REQUESTS),
        },
    },
}
CLASSIFY_RESPONSES: dict[int | str, Documented] = {
    200: {
        "description": "The answer; with stream=true, lines",
        "headers": {"Server-Timing": _SERVER_TIMING},
        "content": {
            "application/json": {"example": examples.ANSWER},
            "application/x-ndjson": {
                "schema": {
                    "description": "Of every line, each of them JSON",
                    "anyOf": [_reference(StreamLine), _reference(StreamProblem)],
                },
                "example": examples.STREAM_LINE,
            },
        },
    },
    **{status: PROBLEMS[status] for status in (400, 413, 415, 422, 429, 500, 503, 504)},
}
