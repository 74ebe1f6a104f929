"""What FastAPI cannot see in the code for the OpenAPI document: bodies, options, headers, errors, examples."""

from http import HTTPStatus
from typing import Any

from msmlp.service.errors import PROBLEM_TYPE, SERVER_FAILED, problem_document
from msmlp.service.http.body import RAW_TYPES
from msmlp.service.http.gate import OPEN
from msmlp.service.http.schemas import Problem, StreamLine, StreamProblem
from msmlp.service.options import EXCLUSIVE, SELECTORS, schemas

DESCRIPTION = """\
Image classification that spends compute only where an image needs it.

Every error, including unknown paths (404) and methods (405, with `Allow`), is `application/problem+json` with the
schema `Problem`. Every response has `X-Request-ID`: the request's own if it consists of 1 to 64 of
`A-Z a-z 0-9 . _ -`, else a new one.
"""

Documented = dict[str, Any]


def _reference(model: type) -> Documented:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _header(description: str, schema: Documented) -> Documented:
    return {"description": description, "required": True, "schema": schema}


_REQUEST_ID = "92b0c0c687884cfab2c1a3dc10b18646"
_ID_HEADER = _header("The request's own id if it is valid, else a new one", {"type": "string"})
_RETRY_AFTER = _header(
    "Seconds to wait before trying again; under overload not the same for all clients, and at most 60",
    {"type": "integer", "minimum": 1},
)
_SERVER_TIMING = {
    "description": "Milliseconds of decoding, and the longest queueing and compute of any image; not sent with streams",
    "schema": {"type": "string"},
    "example": "decode;dur=1.847, queue;dur=6.033, compute;dur=12.583",
}
_PROBLEM_TEXTS = {
    400: "Malformed body",
    401: "No valid key, where the service asks for one (`--api-keys-file`)",
    404: "Unknown path",
    405: "Method not allowed; Allow lists those that are",
    408: "The request did not come in time, or its body too slowly; the connection is closed",
    413: "Too many bytes, told before they are read where Content-Length says so; too many images, or pixels to decode",
    415: "Unsupported content type, content encoding, or charset of a form",
    422: "Undecodable image, no image, or bad option (named, with the allowed range)",
    429: "Overloaded: too many images in flight, too long a predicted wait, or too many bytes of bodies; or the limits "
    "of the key are used up; mostly told before the body is read",
    500: "The server failed",
    503: "Starting, shutting down, the engine is down or failed, no memory, no answer in time, too many connections; "
    "the last two close the connection",
    504: "By the deadline no image had reached an exit",
}
_PROBLEM_EXAMPLES = (
    (400, "malformed_body", "the body is not JSON"),
    (401, "unauthorized", "no valid key; expected authorization: Bearer KEY"),
    (404, "not_found", "no such path; images go to POST /classify, and /docs lists the others"),
    (405, "method_not_allowed", "method not allowed; expected one of POST, PUT"),
    (408, "body_timeout", "less than 10 KB/s of the body came for 10 s"),
    (413, "body_too_large", "the body has 70000000 bytes; at most 67108864 are allowed"),
    (413, "too_many_images", "1200 images in one request; at most 1024 are allowed"),
    (413, "too_many_pixels", "the images have 300000000 pixels to decode, the limit of a request is 256000000 ..."),
    (413, "image_too_large", "image is 10000x10000 = 100000000 pixels, the limit is 32000000"),
    (415, "unsupported_media_type", "content type 'text/html' is not supported; set Content-Type, ..."),
    (422, "undecodable_image", "not a readable image; formats: PNG, JPEG, WEBP, BMP, GIF, AVIF"),
    (422, "bad_option", "max_exit: 4 is out of range; expected 1 to 3"),
    (422, "no_images", "the request has no image; send an image as the body, form fields named images, or JSON"),
    (429, "overloaded", "the service is full: 1020 of 1024 images in flight, 8 more requested"),
    (429, "rate_limited", "this key may have 50 requests a second"),
    (500, "internal", SERVER_FAILED),
    (503, "starting", "the service is starting: stages are being warmed up"),
    (503, "draining", "the service is shutting down"),
    (503, "engine_down", "the engine is down"),
    (503, "no_memory", "there is no memory for this request now"),
    (503, "unanswered", "no answer was ready within 300 s"),
    (504, "expired", "no image reached an exit by its deadline"),
)


def _problem(status: int) -> Documented:
    examples: Documented = {}
    for _, code, detail in (each for each in _PROBLEM_EXAMPLES if each[0] == status):
        examples[code] = {"value": problem_document(HTTPStatus(status), code, detail, _REQUEST_ID)}
        if code in ("image_too_large", "undecodable_image"):
            examples[code]["value"]["errors"] = [{"index": 0, "code": code, "detail": detail}]
    headers = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": _header("How to present a key", {"type": "string", "const": "Bearer"})}
    content = {"schema": _reference(Problem), "examples": examples}
    return {"description": _PROBLEM_TEXTS[status], "headers": headers, "content": {PROBLEM_TYPE: content}}


PROBLEMS: dict[int | str, Documented] = {status: _problem(status) for status in _PROBLEM_TEXTS}


def complete(document: Documented) -> None:
    """Add what all routes have in common, and the schemas that no route names, in place of FastAPI's error schemas."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (Problem, StreamLine, StreamProblem):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(described.pop("$defs", {}))
        schemas[model.__name__] = described
    keys = {"type": "http", "scheme": "bearer", "description": "A key, where the service asks for one."}
    document["components"]["securitySchemes"] = {"key": keys}
    for name, path in document["paths"].items():
        for operation in path.values():
            operation["responses"].setdefault("500", PROBLEMS[500])
            if name not in OPEN:
                operation["responses"]["401"] = PROBLEMS[401]
                operation["security"] = [{"key": []}, {}]
            for status, response in operation["responses"].items():
                operation["responses"][status] = {
                    **response,
                    "headers": {"X-Request-ID": _ID_HEADER, **response.get("headers", {})},
                }
    # They belong to no operation, so no operation can list them.
    document["components"]["responses"] = {"NotFound": PROBLEMS[404], "MethodNotAllowed": PROBLEMS[405]}


# A yellow square of 8 x 8 pixels.
_PNG_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAE0lEQVR42mP8f4YBK2BiYBhKEgBrGAHbZAj7BwAAAABJRU5ErkJggg=="

_JSON_REQUESTS: dict[str, dict[str, Any]] = {
    "an image": {"value": {"images": [_PNG_BASE64]}},
    "two images under a budget": {
        "value": {"images": [_PNG_BASE64, _PNG_BASE64], "budget_gflops": 0.012, "min_exit": 2, "top_k": 3}
    },
    "anytime": {"value": {"images": [_PNG_BASE64], "accuracy_floor": 0.5, "deadline_ms": 50, "min_exit": 1}},
}


def _stage(stage: int, label: str, score: float, **times: float) -> dict[str, Any]:
    return {"stage": stage, "score": score, "confidence": score, "label": label, **times, "batch_size": 1}


# Of weights/cifar10-s and examples/cat.jpg with top_k=2.
_ANSWER: dict[str, Any] = {
    "request_id": _REQUEST_ID,
    "model": {"name": "cifar10-s", "version": "3436e2f83e20"},
    "operating_point": {
        "name": "balanced",
        "source": "default",
        "thresholds": [0.9206121861934662, 0.7096076905727386],
        "expected_accuracy": 0.8924,
        "standard_error": 0.004384219555994966,
        "expected_gflops": 0.01274499968,
    },
    "results": [
        {
            "index": 0,
            "label": "cat",
            "class_id": 3,
            "confidence": 0.98973363,
            "score": 0.98973363,
            "top_k": [
                {"label": "cat", "class_id": 3, "probability": 0.98973363},
                {"label": "dog", "class_id": 5, "probability": 0.00443264},
            ],
            "exit": 2,
            "exits": 3,
            "reason": "confident",
            "gflops": 0.015812672,
            "degraded": False,
            "stages": [
                _stage(1, "cat", 0.64787, queue_ms=0.123, compute_ms=0.439),
                _stage(2, "cat", 0.98973363, queue_ms=0.114, compute_ms=0.423),
            ],
            "latency_ms": 2.498,
        }
    ],
    "latency_ms": 2.639,
    "throughput_images_per_second": 3.0,
}
_STREAM_LINE = {
    "request_id": _REQUEST_ID,
    **_ANSWER["results"][0],
    "final": True,
    "operating_point": _ANSWER["operating_point"],
}

_BINARY = {"type": "string", "format": "binary", "description": "An encoded image; its format is detected"}
_BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "Base64 (RFC 4648, section 4, padded), or a data: URL of it; white space is ignored",
}


def _excluded(name: str) -> list[str]:
    """Options that are not given together with this one."""
    return [other for pair in EXCLUSIVE if name in pair for other in pair if other != name]


def _images(item: Documented, **more: Any) -> Documented:
    images = {"type": "array", "minItems": 1, "items": item, "description": "One or more images"}
    schema = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": images, **schemas()},
        "additionalProperties": False,
        "dependentSchemas": {name: {"properties": dict.fromkeys(_excluded(name), False)} for name in SELECTORS},
    }
    return {"schema": schema, **more}


def _described(name: str, schema: Documented) -> str:
    """A parameter: of the body a schema says what excludes each other, of a query only words can."""
    excludes = f" Excludes {', '.join(_excluded(name))}." if name in SELECTORS else ""
    return f"{schema['description']}{excludes}"


CLASSIFY_OPENAPI: Documented = {
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": _described(name, schema), "explode": False}
        for name, schema in schemas().items()
    ],
    "requestBody": {
        "description": "The image itself; or a form with parts named images (or image) and options as fields; or "
        "JSON. An option given more than once, even in different places, is an error. Content-Encoding is not "
        "supported.",
        "required": True,
        "content": {
            **{kind: {"schema": _BINARY} for kind in RAW_TYPES},
            "multipart/form-data": _images(_BINARY),
            "application/json": _images(_BASE64, examples=_JSON_REQUESTS),
        },
    },
}
CLASSIFY_RESPONSES: dict[int | str, Documented] = {
    200: {
        "description": "The answer; with stream=true, one line per image and exit",
        "headers": {"Server-Timing": _SERVER_TIMING},
        "content": {
            "application/json": {"example": _ANSWER},
            "application/x-ndjson": {
                "schema": {
                    "description": "The schema of each line, a JSON object",
                    "anyOf": [_reference(StreamLine), _reference(StreamProblem)],
                },
                "example": _STREAM_LINE,
            },
        },
    },
    **{status: PROBLEMS[status] for status in (400, 408, 413, 415, 422, 429, 500, 503, 504)},
}
