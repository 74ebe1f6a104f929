"""What comes back from a service and from a model in-process: JSON documents with attributes, or the one exception."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from msmlp.model.errors import MsmlpError


class Document(dict[str, Any]):
    """A JSON object whose fields are attributes too: `answer.results[0].label` is `answer["results"][0]["label"]`.

    It is the whole document, so a field that a newer service adds is there too.
    """

    _kinds: ClassVar[dict[str, type["Document"]]] = {}

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        for name, kind in self._kinds.items():
            part = self.get(name)
            if isinstance(part, list):
                self[name] = [kind(each) for each in part]
            elif part is not None:
                self[name] = kind(part)

    if not TYPE_CHECKING:  # type checkers know the declared fields only

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"this {type(self).__name__} has no field {name!r}") from None


class ClassProbability(Document):
    """One class of the top k."""

    label: str
    class_id: int
    probability: float


class Stage(Document):
    """One stage's answer for an image, and what it took."""

    stage: int
    score: float
    confidence: float
    label: str
    queue_ms: float
    compute_ms: float
    batch_size: int


class Result(Document):
    """One image: which exit fired, why, and what it cost. An image that expired has no label."""

    index: int
    label: str | None
    class_id: int | None
    confidence: float | None
    score: float | None
    top_k: list[ClassProbability]
    exit: int | None
    exits: int
    reason: str
    gflops: float
    degraded: bool
    stages: list[Stage]
    latency_ms: float
    deadline_margin_ms: float  # only with deadline_ms

    _kinds: ClassVar[dict[str, type[Document]]] = {"top_k": ClassProbability, "stages": Stage}


class OperatingPoint(Document):
    """The thresholds used, where they came from, and what they are expected to give."""

    name: str | None
    source: str
    thresholds: list[float]
    expected_accuracy: float
    standard_error: float
    expected_gflops: float


class ModelName(Document):
    """Which model answered."""

    name: str
    version: str


class Answer(Document):
    """The answer to one request, `results` in the order of its images."""

    request_id: str
    model: ModelName
    operating_point: OperatingPoint
    results: list[Result]
    latency_ms: float
    throughput_images_per_second: float

    _kinds: ClassVar[dict[str, type[Document]]] = {
        "model": ModelName,
        "operating_point": OperatingPoint,
        "results": Result,
    }


class StreamLine(Result):
    """An image at an exit; `reason` is `goes_on` until its last, which is `final` and has the operating point."""

    request_id: str
    final: bool
    operating_point: OperatingPoint

    _kinds: ClassVar[dict[str, type[Document]]] = {**Result._kinds, "operating_point": OperatingPoint}


class ServiceError(MsmlpError):
    """A request that was not answered; a service and a model in-process give the same fields for the same fault.

    Args:
        detail: one clear line.
        status: the HTTP status; None when no answer came.
        code: the service's name for it (`bad_option`, `overloaded`, ...); `unreachable` or `timeout` when no answer
            came, `not_sent` when nothing could be sent, `not_understood` when the answer is not the service's.
        request_id: as the service logged it.
        errors: one `{"index", "code", "detail"}` per bad image.
        retry_after: seconds to wait, if the service asked for a retry.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str = "",
        request_id: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.status, self.code = detail, status, code
        self.request_id, self.errors, self.retry_after = request_id, errors or [], retry_after

    @classmethod
    def of_problem(cls, problem: Mapping[str, Any], retry_after: float | None = None) -> "ServiceError":
        """From a problem+json document."""
        return cls(
            str(problem["detail"]),
            status=problem["status"],
            code=str(problem["code"]),
            request_id=problem.get("request_id"),
            errors=problem.get("errors"),
            retry_after=retry_after,
        )
