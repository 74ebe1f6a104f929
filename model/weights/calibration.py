"""`calibration.json` + `calibration.safetensors`: operating points, and the table they were measured on."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.errors import WeightsError
from model.exits import exit_of
from model.weights.files import read_checked, write_atomically
from model.weights.manifest import Weights

CALIBRATION = "calibration.json"
TABLE = "calibration.safetensors"

Threshold = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OperatingPoint(BaseModel):
    """A full set of thresholds [K-1] with what it gave on the calibration images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    thresholds: tuple[Threshold, ...]
    expected_accuracy: float
    standard_error: float
    mean_gflops: float
    exit_share: tuple[float, ...]
    solver: str


class CalibrationFile(BaseModel):
    """calibration.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    model_sha256: str
    exit_policy: Literal["max-probability"]
    temperatures: tuple[Temperature, ...]
    operating_points: tuple[OperatingPoint, ...] = Field(min_length=1)
    solvers: dict[str, list[tuple[float, float]]] = Field(
        default={}, description="for the record: each solver's own frontier, as (mean GFLOPs, accuracy)"
    )
    images: int
    digest: str
    device: str
    files: dict[str, str]


@dataclass(frozen=True)
class Expectation:
    """What a set of thresholds gave on the calibration images."""

    accuracy: float
    standard_error: float
    mean_gflops: float
    exit_share: tuple[float, ...]


class Calibration:
    """Operating points and the table of calibration scores [N, K] and correctness [N, K] behind them."""

    def __init__(
        self,
        file: CalibrationFile,
        scores: NDArray[np.float32],
        correct: NDArray[np.bool_],
        gflops: NDArray[np.float64],
        sha256: str,
    ) -> None:
        self.file, self.sha256 = file, sha256
        self.points = file.operating_points
        self._scores, self._correct, self._gflops = scores, correct, gflops
        # Requests repeat their thresholds; 512 sets are a few KB.
        self.expect = lru_cache(maxsize=512)(self._expect)

    def _expect(self, thresholds: tuple[float, ...], min_exit: int = 1, max_exit: int | None = None) -> Expectation:
        """The expectation of any thresholds under any exit bounds, from the table."""
        return expectation(
            self._scores, self._correct, self._gflops, np.array(thresholds, dtype=float), min_exit, max_exit
        )


def expectation(
    scores: NDArray[np.float32],
    correct: NDArray[np.bool_],
    gflops: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    min_exit: int = 1,
    max_exit: int | None = None,
) -> Expectation:
    """Accuracy, its binomial standard error, mean cost and exit shares of `thresholds` [K-1] on a table [N, K].

    `gflops` [K] is cumulative.
    """
    images, exits = scores.shape
    left = exit_of(scores, thresholds, min_exit, max_exit) - 1
    accuracy = float(correct[np.arange(images), left].mean())
    share = np.bincount(left, minlength=exits) / images
    return Expectation(
        accuracy,
        float(np.sqrt(accuracy * (1 - accuracy) / images)),
        float(share @ gflops),
        tuple(share.tolist()),
    )


def write_calibration(
    folder: Path,
    *,
    model_sha256: str,
    scores: NDArray[np.float32],
    correct: NDArray[np.bool_],
    points: list[OperatingPoint],
    solvers: dict[str, list[tuple[float, float]]],
    digest: str,
    device: str,
) -> None:
    """Write both files; the JSON last, as it names the hash of the other."""
    table = save({"scores": np.ascontiguousarray(scores), "correct": correct.astype(np.uint8)})
    file = CalibrationFile(
        format=1,
        model_sha256=model_sha256,
        exit_policy="max-probability",
        temperatures=(1.0,) * scores.shape[1],
        operating_points=tuple(points),
        solvers=solvers,
        images=len(scores),
        digest=digest,
        device=device,
        files={TABLE: hashlib.sha256(table).hexdigest()},
    )
    write_atomically(folder / TABLE, table)
    write_atomically(folder / CALIBRATION, (file.model_dump_json(indent=1) + "\n").encode())


def load_calibration(weights: Weights) -> Calibration:
    """Read the calibration of loaded weights.

    Raises:
        WeightsError: missing, damaged, or made for other weights.
    """
    path = weights.folder / CALIBRATION
    try:
        blob = path.read_bytes()
        file = CalibrationFile.model_validate(json.loads(blob))
    except FileNotFoundError:
        raise WeightsError(
            f"{weights.folder} is not calibrated; run msmlp calibrate --weights {weights.folder}"
        ) from None
    except ValidationError as error:
        raise WeightsError(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    except ValueError:
        raise WeightsError(f"{path} is not JSON") from None
    if file.model_sha256 != weights.sha256:
        raise WeightsError(f"{path} was made for other weights; run msmlp calibrate again")
    exits = len(weights.manifest.cascade.stages)
    try:
        table = load(read_checked(weights.folder / TABLE, file.files.get(TABLE)))
        scores, correct = table["scores"], table["correct"].astype(bool)
    except (SafetensorError, KeyError) as error:
        raise WeightsError(f"{weights.folder / TABLE} is not a calibration table ({error})") from None
    if scores.shape != (file.images, exits) or correct.shape != scores.shape:
        raise WeightsError(f"{weights.folder / TABLE}: shape {scores.shape}, expected {(file.images, exits)}")
    if not np.isfinite(scores).all():
        raise WeightsError(f"{weights.folder / TABLE} holds NaN or infinite scores")
    if any(len(point.thresholds) != exits - 1 for point in file.operating_points):
        raise WeightsError(f"{path}: operating points need {exits - 1} thresholds")
    if len(file.temperatures) != exits:
        raise WeightsError(f"{path}: {len(file.temperatures)} temperatures for {exits} exits")
    gflops = np.array(weights.manifest.gflops_cumulative)
    return Calibration(file, scores, correct, gflops, hashlib.sha256(blob).hexdigest())


def model_version(weights: Weights, calibration: Calibration) -> str:
    """A short name for manifest, weights and calibration together: any change of any changes it."""
    parts = weights.sha256 + weights.manifest_sha256 + calibration.sha256
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
