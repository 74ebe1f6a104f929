"""The shapes of answers and errors, for the OpenAPI document; what is sent is built as plain data (answers.py)."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from msmlp.model.nn.config import CascadeConfig
from msmlp.model.preprocess import Preprocess
from msmlp.model.weights import OperatingPoint

Reason = Literal["confident", "final", "max_exit", "deadline", "expired"]


class ClassProbability(BaseModel):
    """One class of the top k."""

    label: str
    class_id: int
    probability: float


class StageReport(BaseModel):
    """What one stage said of an image, and what it took."""

    stage: int = Field(description="1...K")
    score: float = Field(description="What is compared with the threshold, in [0, 1]; higher is surer")
    confidence: float = Field(description="The label's temperature-scaled probability")
    label: str
    queue_ms: float = Field(description="How long the image waited for the stage")
    compute_ms: float = Field(description="How long its batch took")
    batch_size: int = Field(description="How many images were in the batch, padding not counted")


class ImageAnswer(BaseModel):
    """One image's answer: which exit fired, why, and what it cost. Null where no exit was reached (`expired`)."""

    index: int = Field(description="The image's place in the request, from 0")
    label: str | None
    class_id: int | None
    confidence: float | None = Field(description="The label's temperature-scaled probability")
    score: float | None = Field(description="What was compared with the threshold, in [0, 1]; higher is surer")
    top_k: list[ClassProbability] = Field(description="The likeliest classes, likeliest first; empty where expired")
    exit: int | None = Field(description="The exit it left at, 1...K")
    exits: int = Field(description="K, how many exits there are")
    reason: Reason = Field(
        description="confident: the score reached the threshold; final: the last stage; max_exit: max_exit or "
        "max_gflops forbade the next stage; deadline: the next stage would not have ended in time; expired: no exit "
        "was reached by the deadline"
    )
    gflops: float = Field(description="What the image cost, cumulative")
    degraded: bool = Field(description="Whether brown-out chose cheaper thresholds than the request's own")
    stages: list[StageReport] = Field(description="Every stage the image went through")
    latency_ms: float = Field(description="From the request's arrival to this image's answer")
    deadline_margin_ms: float = Field(
        default=0.0, description="Only with deadline_ms: the deadline less this image's answer; below 0 it was late"
    )


class OperatingPointAnswer(BaseModel):
    """The thresholds used, and what they are expected to give on images like the calibration's."""

    name: str | None = Field(description="Null for thresholds of the request's own")
    source: Literal["request", "default", "brownout"]
    thresholds: list[float] = Field(description="K - 1 numbers in [0, 1]")
    expected_accuracy: float
    expected_gflops: float = Field(description="Mean cost an image")


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str = Field(description="Changes with weights and calibration")


class Answer(BaseModel):
    """The answer of `POST /classify`."""

    request_id: str
    model: ModelName
    operating_point: OperatingPointAnswer
    results: list[ImageAnswer] = Field(description="One entry an image, in the request's order")
    latency_ms: float = Field(description="From arrival to answer, the body's reading included")
    throughput_images_per_second: float = Field(description="The service's, over the last seconds")


class ImageProblem(BaseModel):
    """What is wrong with one image."""

    index: int = Field(description="The image's place in the request, from 0")
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details, the shape of every error."""

    type: str = Field(description="about:blank: the title says it")
    title: str = Field(description="The status in words")
    status: int
    detail: str = Field(description="What is wrong and what is allowed, for people")
    code: str = Field(description="What is wrong, for programs; docs/http.md lists the codes")
    request_id: str = Field(description="The same as X-Request-ID; the service's log knows it")
    errors: list[ImageProblem] | None = Field(
        default=None, description="Where images cannot be classified: each of them. The request fails as a whole."
    )


class StreamLine(ImageAnswer):
    """One line of a stream: an image at an exit. The image's last line says `final` and has the operating point."""

    request_id: str
    reason: Literal["goes_on", Reason]  # type: ignore[assignment]
    final: bool
    operating_point: OperatingPointAnswer | None = None


class StreamProblem(Problem):
    """The last line of a stream that could not go on: what the status would have said."""

    final: Literal[True]


class ExitCost(BaseModel):
    """Cumulative GFLOPs of an exit: as served (reuse folded), and in the paper's form."""

    exit: int
    gflops: float
    gflops_unfolded: float


class ModelDescription(BaseModel):
    """The model served: cascade, costs, calibration, provenance."""

    name: str
    version: str = Field(description="Changes with weights and calibration")
    cascade: CascadeConfig
    classes: list[str] = Field(description="Class names; class_id is the place in this list")
    preprocess: Preprocess
    exits: list[ExitCost]
    exit_policy: str = Field(description="What the score is")
    exit_policy_parameters: dict[str, Any]
    temperatures: list[float] = Field(description="One an exit")
    stage_ms: list[float] | None = Field(description="Each stage's milliseconds an image where it was calibrated")
    operating_points: list[OperatingPoint] = Field(
        description="The frontier, with its named points, and a risk-controlled point if there is one"
    )
    training: dict[str, Any] = Field(description="How the weights came about")
    results: list[dict[str, Any]] = Field(description="Accuracy of every exit, with split and number of images")
    default_policy: str = Field(description="The operating point of requests that choose none")


class Live(BaseModel):
    """The process is worth keeping."""

    live: Literal[True]


class Ready(BaseModel):
    """Requests are served now."""

    ready: Literal[True]
