"""What FastAPI cannot see in the code for the OpenAPI document: bodies, options, headers, errors, examples."""

from typing import Any

from msmlp.service.errors import PROBLEM_TYPE
from msmlp.service.http import examples
from msmlp.service.http.body import RAW_TYPES
from msmlp.service.http.schemas import Problem, StreamLine, StreamProblem
from msmlp.service.options import schemas

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


_REQUEST_ID = _header("The request's own id if it is valid, else a new one", {"type": "string"})
_RETRY_AFTER = _header("Seconds to wait before trying again", {"type": "integer", "minimum": 1, "maximum": 60})
_SERVER_TIMING = {
    "description": "Milliseconds of decoding, and the longest queueing and compute of any image; not sent with streams",
    "schema": {"type": "string"},
    "example": "decode;dur=1.847, queue;dur=6.033, compute;dur=12.583",
}
_PROBLEM_TEXTS = {
    400: "Malformed body",
    404: "Unknown path",
    405: "Method not allowed; Allow lists those that are",
    413: "Too many bytes, pixels or images",
    415: "Unsupported content type or content encoding",
    422: "Undecodable image, no image, or bad option (named, with the allowed range)",
    429: "Overloaded: no permits for these images now",
    500: "The server failed",
    503: "Starting, shutting down, or the engine is down",
    504: "Every image expired before it reached an exit",
}


def _problem(status: int) -> Documented:
    headers = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else {}
    content = {"schema": _reference(Problem), "examples": examples.PROBLEMS[status]}
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
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].setdefault("500", PROBLEMS[500])
            for status, response in operation["responses"].items():
                operation["responses"][status] = {
                    **response,
                    "headers": {"X-Request-ID": _REQUEST_ID, **response.get("headers", {})},
                }
    # They belong to no operation, so no operation can list them.
    document["components"]["responses"] = {"NotFound": PROBLEMS[404], "MethodNotAllowed": PROBLEMS[405]}


_BINARY = {"type": "string", "format": "binary", "description": "An encoded image; its format is detected"}
_BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "Base64 (RFC 4648, section 4, padded), or a data: URL of it; white space is ignored",
}


def _images(item: Documented, **more: Any) -> Documented:
    images = {"type": "array", "minItems": 1, "items": item, "description": "One or more images"}
    properties = {"images": images, **schemas()}
    return {
        "schema": {"type": "object", "required": ["images"], "properties": properties, "additionalProperties": False},
        **more,
    }


CLASSIFY_OPENAPI: Documented = {
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"], "explode": False}
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
            "application/json": _images(_BASE64, examples=examples.JSON_REQUESTS),
        },
    },
}
CLASSIFY_RESPONSES: dict[int | str, Documented] = {
    200: {
        "description": "The answer; with stream=true, one line per image and exit",
        "headers": {"Server-Timing": _SERVER_TIMING},
        "content": {
            "application/json": {"example": examples.ANSWER},
            "application/x-ndjson": {
                "schema": {
                    "description": "The schema of each line, a JSON object",
                    "anyOf": [_reference(StreamLine), _reference(StreamProblem)],
                },
                "example": examples.STREAM_LINE,
            },
        },
    },
    **{status: PROBLEMS[status] for status in (400, 413, 415, 422, 429, 500, 503, 504)},
}
