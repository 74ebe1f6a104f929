"""`calibration.json` + `calibration.safetensors`: operating points, and the table they were measured on."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from msmlp.model.errors import OptionError, WeightsError
from msmlp.model.exits.policies import REMOVED_POLICIES, exit_policy
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.files import read_checked, read_json, validated, write_together
from msmlp.model.weights.manifest import Weights

CALIBRATION = "calibration.json"
TABLE = "calibration.safetensors"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OperatingPoint(BaseModel):
    """Thresholds [K-1] with their expected accuracy, measured on calibration images that did not choose them.

    A fixed exit's accuracy is counted on all images: nothing was chosen.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    thresholds: tuple[Share, ...]
    expected_accuracy: Share
    standard_error: Share
    mean_gflops: Positive
    mean_ms: Positive | None = Field(default=None, description="milliseconds per image, if stage times are known")
    exit_share: tuple[Share, ...]
    solver: str
    risk: Share | None = Field(
        default=None,
        description="for a risk-controlled point: the largest share of images it gets wrong and the last exit right",
    )
    confidence: Share | None = Field(default=None, description="the probability with which `risk` holds")
    same_as: str | None = Field(default=None, description="another name of this very point, which is listed after it")


class Promise(BaseModel):
    """An expected accuracy beside the one reached on images that chose nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    expected_accuracy: Share
    accuracy: Share
    expected_minus_reached: float
    standard_error: float = Field(description="of the difference, from the errors of both accuracies")


class Audit(BaseModel):
    """What every exit and every operating point, by name, reached on the audit images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    images: int
    digest: str
    exits: tuple[Promise, ...]
    operating_points: dict[str, Promise]


class CalibrationFile(BaseModel):
    """calibration.json. Fields with a default are newer than the first files of this format."""

    # Unknown keys are allowed: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    model_sha256: str
    exit_policy: str
    exit_policy_parameters: dict[str, Any] = Field(default={}, description="empty: no exit policy has any")
    temperatures: tuple[Positive, ...]
    cost: Literal["gflops", "ms"] = Field(default="gflops", description="what the frontier was solved in")
    operating_points: tuple[OperatingPoint, ...] = Field(min_length=1)
    solvers: dict[str, list[tuple[float, float]]] = Field(
        default={},
        description="for the record: each solver's own frontier, as (mean GFLOPs, accuracy) on the images it saw",
    )
    stage_ms: tuple[Positive, ...] | None = Field(
        default=None, description="each stage's own milliseconds per image in full batches, on one core of a CPU"
    )
    stage_ms_batch_size: int | None = None
    images: int = Field(ge=1)
    digest: str
    device: str
    dtype: str | None = None
    audit: Audit | None = Field(default=None, description="measured last; it chose nothing above")
    files: dict[str, str]

    @property
    def cpu_ms(self) -> tuple[float, ...] | None:
        """`stage_ms` where a CPU was measured: they say little about another kind of device."""
        return self.stage_ms if self.device.startswith("cpu") else None

    @model_validator(mode="after")
    def _policy_fits(self) -> Self:
        try:
            exit_policy(self.exit_policy)
        except OptionError as error:
            raise ValueError(str(error)) from None
        if self.exit_policy_parameters:
            found = ", ".join(self.exit_policy_parameters)
            raise ValueError(f"exit policy parameters: {self.exit_policy} takes no parameters, found {found}")
        return self


@dataclass(frozen=True)
class Expectation:
    """What thresholds give on a table of images; the cost is in the table's unit."""

    accuracy: float
    standard_error: float
    mean_cost: float
    exit_share: tuple[float, ...]


def promise(expected: float, expected_error: float, reached: float, reached_error: float) -> Promise:
    """Two accuracies with their standard errors, on images of which none is in both sets: the variances add up."""
    return Promise(
        expected_accuracy=expected,
        accuracy=reached,
        expected_minus_reached=expected - reached,
        standard_error=math.hypot(expected_error, reached_error),
    )


def standard_error(right: int, images: int) -> float:
    """Of the share of right answers: the binomial one for (right + 1) of N + 2, so it is never 0.

    No number of images shows that an exit is always right.
    """
    smoothed = (right + 1) / (images + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (images + 2))


@dataclass(frozen=True)
class Table:
    """Scores [N, K], correctness [N, K] and the cumulative cost of each exit [K], in GFLOPs or another unit."""

    scores: NDArray[np.float32]
    correct: NDArray[np.bool_]
    costs: NDArray[np.float64]

    @property
    def exits(self) -> int:
        return int(self.scores.shape[1])

    def take(self, rows: NDArray[np.bool_]) -> "Table":
        return Table(self.scores[rows], self.correct[rows], self.costs)

    def expect(self, thresholds: Sequence[float], min_exit: int = 1, max_exit: int | None = None) -> Expectation:
        """The expectation of any thresholds [K-1] under any exit bounds."""
        return self.expect_at(exit_of(self.scores, np.array(thresholds, dtype=float), min_exit, max_exit))

    def expect_exit(self, exit: int) -> Expectation:
        """The expectation if every image runs to one exit, 1...K."""
        return self.expect_at(np.full(len(self.scores), exit, dtype=np.int64))

    def expect_at(self, left: NDArray[np.int64]) -> Expectation:
        """The expectation for images that leave at the exits `left` [N], 1...K."""
        images = len(left)
        right = int(self.correct[np.arange(images), left - 1].sum())
        share = np.bincount(left - 1, minlength=self.exits) / images
        error = standard_error(right, images)
        return Expectation(right / images, error, float(share @ self.costs), tuple(share.tolist()))


FIXED_EXIT_GAIN = 0.001
"""A fixed exit must be more accurate by more than this than what costs no more: otherwise early exit loses nothing that
matters. No single image of fewer than 1,000 is worth less."""


def fixed_exit(exit: int, exits: int) -> tuple[float, ...]:
    """The thresholds [K-1] with which every image leaves at one exit, 1...K."""
    return (1.0,) * (exit - 1) + (0.0,) * (exits - exit)


class Calibration:
    """Operating points, and the table of calibration images behind them."""

    def __init__(self, file: CalibrationFile, table: Table, sha256: str) -> None:
        self.file, self.table, self.sha256 = file, table, sha256
        self.points = file.operating_points
        # Requests repeat their thresholds; 512 entries are a few KB.
        self.expect = lru_cache(maxsize=512)(table.expect)


def write_calibration(
    folder: Path, file: CalibrationFile, scores: NDArray[np.float32], correct: NDArray[np.bool_]
) -> None:
    table = save({"scores": np.ascontiguousarray(scores), "correct": correct.astype(np.uint8)})
    file = file.model_copy(update={"files": {TABLE: hashlib.sha256(table).hexdigest()}})
    described = (file.model_dump_json(indent=1) + "\n").encode()
    write_together({folder / TABLE: table, folder / CALIBRATION: described})


def load_calibration(weights: Weights) -> Calibration:
    """Read the calibration of loaded weights; WeightsError if it is missing, damaged, or made for other weights."""
    path = weights.folder / CALIBRATION
    blob, file = _read_file(path)
    if file.model_sha256 != weights.sha256:
        raise WeightsError(f"{path} was made for other weights; run msmlp calibrate again")
    _check_lengths(path, file, len(weights.manifest.cascade.stages))
    scores, correct = _read_table(weights.folder / TABLE, file)
    table = Table(scores, correct, np.array(weights.manifest.gflops_cumulative))
    return Calibration(file, table, hashlib.sha256(blob).hexdigest())


def _read_file(path: Path) -> tuple[bytes, CalibrationFile]:
    read = read_json(path)
    if read is None:
        raise WeightsError(f"{path.parent} is not calibrated; run msmlp calibrate --weights {path.parent}")
    blob, document = read
    policy = document.get("exit_policy") if isinstance(document, dict) else None
    if policy in REMOVED_POLICIES:
        raise WeightsError(
            f"{path.parent}: calibration uses the exit policy {policy!r}, removed in 0.2; "
            f"run msmlp calibrate --weights {path.parent} --data DATA"
        )
    return blob, validated(CalibrationFile, document, path)


def _check_lengths(path: Path, file: CalibrationFile, exits: int) -> None:
    if any(len(point.thresholds) != exits - 1 for point in file.operating_points):
        raise WeightsError(f"{path}: every operating point must have {exits - 1} thresholds")
    if len(file.temperatures) != exits:
        raise WeightsError(f"{path}: {len(file.temperatures)} temperatures for {exits} exits")
    if file.stage_ms is not None and len(file.stage_ms) != exits:
        raise WeightsError(f"{path}: stage_ms has {len(file.stage_ms)} numbers for {exits} stages")


def _read_table(path: Path, file: CalibrationFile) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    try:
        table = load(read_checked(path, file.files.get(TABLE)))
        scores, correct = table["scores"], table["correct"].astype(bool)
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a calibration table ({error})") from None
    expected = (file.images, len(file.temperatures))
    if scores.shape != expected or correct.shape != scores.shape:
        raise WeightsError(f"{path}: shape {scores.shape}, expected {expected}")
    if not np.isfinite(scores).all():
        raise WeightsError(f"{path} has NaN or infinite scores")
    return scores, correct


def model_version(weights: Weights, calibration: Calibration) -> str:
    """A short hash of manifest, weights and calibration together."""
    parts = weights.sha256 + weights.manifest_sha256 + calibration.sha256
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
