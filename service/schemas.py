"""The shapes of answers and errors, for the OpenAPI document; the answer itself is built as plain data (answers.py)."""

from typing import Literal

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
    label: str | None
    class_id: int | None
    confidence: float | None
    score: float | None
    top_k: list[ClassProbability]
    exit: int | None
    exits: int
    reason: Literal["confident", "final", "max_exit", "deadline", "expired"]
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


class StreamLine(ImageAnswer):
    """One line of a stream: an image at an exit. The image's last line says `final` and has the operating point."""

    request_id: str
    reason: Literal["goes_on", "confident", "final", "max_exit", "deadline", "expired"]  # type: ignore[assignment]
    final: bool
    operating_point: OperatingPointAnswer | None = None
