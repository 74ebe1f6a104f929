"""What the OpenAPI document says of `POST /classify` and of errors, beyond what FastAPI sees in the code."""

from typing import Any

from service.body import RAW_TYPES
from service.schemas import Problem, StreamLine

_PROBLEM_TEXTS = {
    400: "Malformed body",
    413: "Too many bytes, pixels or images",
    415: "Content type not read here",
    422: "Undecodable image or bad option",
    429: "Shed; see Retry-After",
    500: "The server failed",
    503: "Starting, draining or engine down; see Retry-After",
    504: "Every image expired",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, text in _PROBLEM_TEXTS.items()
}


def complete(document: dict[str, Any]) -> None:
    """Add the schemas that no route names in its code, in place of FastAPI's own error shapes."""
    schemas = document["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    for model in (Problem, StreamLine):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(described.pop("$defs", {}))
        schemas[model.__name__] = described


_GFLOPS, _SHARE = {"type": "number", "minimum": 0}, {"type": "number", "minimum": 0, "maximum": 1}
_WHOLE, _FLAG = {"type": "integer", "minimum": 1}, {"type": "boolean"}
_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "thresholds": (
        {"type": "array", "items": _SHARE},
        "K - 1 numbers in [0, 1], as 0.9,0.8: an image leaves at exit i when its score ≥ thresholds[i]",
    ),
    "policy": ({"type": "string"}, "Name of an operating point; see GET /model"),
    "budget_gflops": (_GFLOPS, "The best operating point whose mean cost is at most this"),
    "min_accuracy": (_SHARE, "The cheapest operating point expected to reach this"),
    "max_gflops": (_GFLOPS, "Hard cap an image: no stage is entered that would pass it"),
    "accuracy_floor": (_SHARE, "Brown-out stays at or above this expected accuracy; not with thresholds"),
    "deadline_ms": (_GFLOPS, "Aim to answer within so many milliseconds of arrival, with the best exit reached"),
    "min_exit": (_WHOLE, "No image leaves before this exit; outranks the deadline"),
    "max_exit": (_WHOLE, "Every image has left after this exit"),
    "top_k": (_WHOLE, "Classes listed an image; 5 without"),
    "degrade": (_FLAG, "false: brown-out may not change this request's thresholds"),
    "stream": (_FLAG, "true: application/x-ndjson, one line an image and exit as it lands"),
}
_BINARY = {"type": "string", "format": "binary"}
_PROPERTIES = {name: {**schema, "description": text} for name, (schema, text) in _OPTIONS.items()}


def _images(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "minItems": 1, "items": item}, **_PROPERTIES},
        }
    }


CLASSIFY_OPENAPI = {
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": text, "explode": False}
        for name, (schema, text) in _OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": _BINARY} for kind in RAW_TYPES},
            "multipart/form-data": _images(_BINARY),
            "application/json": _images({"type": "string", "format": "byte"}),
        },
    },
}
CLASSIFY_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/StreamLine"}}}},
    **PROBLEMS,
}
