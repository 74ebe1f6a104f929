"""The shapes of answers and errors, for the OpenAPI document; the answer itself is built as plain data (answers.py)."""

from typing import Any, Literal

from pydantic import BaseModel


class ClassProbability(BaseModel):
    """One class of the top k."""

    label: str
    class_id: int
    probability: float


class StageReport(BaseModel):
    """What one stage said of an image, and what it took."""

    stage: int
    score: float
    confidence: float
    label: str
    queue_ms: float
    compute_ms: float
    batch_size: int


class ImageAnswer(BaseModel):
    """One image's answer: which exit fired, why, and what it cost."""

    index: int
    label: str
    class_id: int
    confidence: float
    score: float
    top_k: list[ClassProbability]
    exit: int
    exits: int
    reason: Literal["confident", "final", "max_exit"]
    gflops: float
    degraded: bool
    stages: list[StageReport]
    latency_ms: float


class OperatingPointAnswer(BaseModel):
    """The thresholds used, and what they are expected to give on images like the calibration's."""

    name: str | None
    source: Literal["request", "default", "brownout"]
    thresholds: list[float]
    expected_accuracy: float
    expected_gflops: float


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str


class Answer(BaseModel):
    """The answer of `POST /classify`."""

    request_id: str
    model: ModelName
    operating_point: OperatingPointAnswer
    results: list[ImageAnswer]
    latency_ms: float
    throughput_images_per_second: float


class ImageProblem(BaseModel):
    """What is wrong with one image."""

    index: int
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ImageProblem] | None = None


_PROBLEM_TEXTS = {
    400: "Malformed body",
    413: "Too many bytes, pixels or images",
    415: "Content type not read here",
    422: "Undecodable image or bad option",
    429: "Shed; see Retry-After",
    503: "Starting, draining or engine down; see Retry-After",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, text in _PROBLEM_TEXTS.items()
}


def _option(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


_NUMBER, _WHOLE = {"type": "number", "minimum": 0}, {"type": "integer", "minimum": 1}
CLASSIFY_PARAMETERS = [
    _option(
        "thresholds", {"type": "string"}, "K - 1 numbers in [0, 1], as 0.9,0.8: leave exit i at score ≥ thresholds[i]"
    ),
    _option("policy", {"type": "string"}, "Name of an operating point; see GET /model"),
    _option("budget_gflops", _NUMBER, "The best operating point whose mean cost is at most this"),
    _option(
        "min_accuracy", {"type": "number", "minimum": 0, "maximum": 1}, "The cheapest point expected to reach this"
    ),
    _option("max_gflops", _NUMBER, "Hard cap an image"),
    _option("min_exit", _WHOLE, "No image leaves before this exit"),
    _option("max_exit", _WHOLE, "Every image has left after this exit"),
    _option("top_k", _WHOLE, "Classes listed an image"),
]
