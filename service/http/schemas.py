"""The schemas of answers and errors, for the OpenAPI document; what is sent is built as plain data (inference.py)."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from msmlp.model.preprocess import Preprocess
from msmlp.model.weights import OperatingPoint
from msmlp.model.weights.manifest import AnyCascade

Reason = Literal["confident", "final", "max_exit", "deadline", "expired"]


class ClassProbability(BaseModel):
    """One class of the top k."""

    label: str
    class_id: int
    probability: float


class StageReport(BaseModel):
    """What one stage said about an image, and how long it took."""

    stage: int = Field(description="1...K")
    score: float = Field(description="Compared with the threshold, in [0, 1]; higher is more certain")
    confidence: float = Field(description="The label's temperature-scaled probability")
    label: str
    queue_ms: float = Field(description="The image's wait for the stage")
    compute_ms: float = Field(description="Compute time of its batch")
    batch_size: int = Field(description="Images in the batch, without padding")


class ImageAnswer(BaseModel):
    """One image's answer: which exit fired, why, and what it cost. Null where no exit was reached (`expired`)."""

    index: int = Field(description="The image's place in the request, from 0")
    label: str | None
    class_id: int | None
    confidence: float | None = Field(description="The label's temperature-scaled probability")
    score: float | None = Field(description="Compared with the threshold, in [0, 1]; higher is more certain")
    top_k: list[ClassProbability] = Field(description="The most likely classes, most likely first; empty if expired")
    exit: int | None = Field(description="The exit the image left at, 1...K")
    exits: int = Field(description="K, the number of exits")
    reason: Reason = Field(
        description="confident: the score reached the threshold; final: the last stage; max_exit: max_exit or "
        "max_gflops forbade the next stage; deadline: the next stage would have ended too late; expired: no exit "
        "was reached by the deadline"
    )
    gflops: float = Field(description="Cost of the image, over all its stages")
    degraded: bool = Field(description="Whether brown-out replaced the operating point by a cheaper one")
    stages: list[StageReport] = Field(description="Every stage the image went through")
    latency_ms: float = Field(description="From the request's arrival to this image's answer")
    deadline_margin_ms: float = Field(
        default=0.0,
        description="Only with deadline_ms: time from this image's answer to the deadline; negative if it was late",
    )


class OperatingPointAnswer(BaseModel):
    """The thresholds used, with the accuracy and cost expected on images like the calibration's."""

    name: str | None = Field(description="Null for a request's own thresholds, and for an exit that all images run to")
    source: Literal["request", "default", "brownout"]
    thresholds: list[float] = Field(description="K - 1 numbers in [0, 1]")
    expected_accuracy: float
    standard_error: float = Field(description="Of the expected accuracy, from the number of calibration images")
    expected_gflops: float = Field(description="Mean cost per image")


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str = Field(description="Changes with weights and calibration")


class Answer(BaseModel):
    """The answer of `POST /classify`."""

    request_id: str
    model: ModelName
    operating_point: OperatingPointAnswer
    results: list[ImageAnswer] = Field(description="One entry per image, in the request's order")
    latency_ms: float = Field(description="From arrival to answer, including reading the body")
    throughput_images_per_second: float = Field(description="Throughput of the whole service over the last seconds")


class ImageProblem(BaseModel):
    """What is wrong with one image."""

    index: int = Field(description="The image's place in the request, from 0")
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details, the schema of every error."""

    type: str = Field(description="about:blank")
    title: str = Field(description="The status in words")
    status: int
    detail: str = Field(description="What is wrong and what is expected, in words")
    code: str = Field(description="What is wrong, as a code for programs; docs/http.md lists them")
    request_id: str = Field(description="The same as X-Request-ID; also in the service's log")
    errors: list[ImageProblem] | None = Field(
        default=None, description="The images that cannot be classified; the request fails as a whole."
    )


class StreamLine(ImageAnswer):
    """One line of a stream: an image at an exit. The image's last line is `final` and has the operating point."""

    request_id: str
    reason: Literal["goes_on", Reason]  # type: ignore[assignment]
    final: bool
    operating_point: OperatingPointAnswer | None = None


class StreamProblem(Problem):
    """The last line of a stream that failed after its status was sent."""

    final: Literal[True]


class ExitCost(BaseModel):
    """Cumulative GFLOPs to an exit: as served (reuse folded), and in the paper's form."""

    exit: int
    gflops: float
    gflops_unfolded: float


class ModelDescription(BaseModel):
    """The model served: architecture, costs, operating points, provenance."""

    name: str
    version: str = Field(description="Changes with weights and calibration")
    cascade: AnyCascade
    classes: list[str] = Field(description="Class names; class_id is the index in this list")
    preprocess: Preprocess
    exits: list[ExitCost]
    exit_policy: str = Field(description="Which score is compared with the thresholds")
    exit_policy_parameters: dict[str, Any]
    temperatures: list[float] = Field(description="One per exit")
    stage_ms: list[float] | None = Field(
        description="Each stage's milliseconds per image on the device that calibrated; of a CPU on one core"
    )
    operating_points: list[OperatingPoint] = Field(
        description="The frontier, with its named points, and a risk-controlled point if there is one"
    )
    training: dict[str, Any] = Field(description="How the weights were trained")
    results: list[dict[str, Any]] = Field(description="Accuracy of each exit, with the split and number of images")
    default_policy: str = Field(description="The operating point of requests that select none")


class Live(BaseModel):
    """The process is healthy."""

    live: Literal[True]


class Ready(BaseModel):
    """The service accepts requests."""

    ready: Literal[True]
