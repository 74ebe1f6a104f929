"""From a run's folder to a `Run`: a weights folder, a teacher's, or one that holds a checkpoint only."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msmlp.model.errors import WeightsError
from msmlp.model.report.run import Exit, Point, Row, Run
from msmlp.model.report.unfinished import unfinished_run
from msmlp.model.training.run_log import METRICS, read_metrics
from msmlp.model.training.trainer import CHECKPOINT
from msmlp.model.weights import Manifest, load_calibration, load_weights
from msmlp.model.weights.calibration import CALIBRATION
from msmlp.model.weights.files import read_checked, read_json
from msmlp.model.weights.manifest import MANIFEST, MODEL

TEACHER = "teacher.json"
SIGNS = (MANIFEST, TEACHER, CHECKPOINT, METRICS)
"""A folder that holds one of these is taken for a run."""


class TeacherFile(BaseModel):
    """Of teacher.json, what a report shows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    name: str = Field(min_length=1)
    network: dict[str, Any]
    files: dict[str, str]
    training: dict[str, Any]
    results: list[Exit]
    gflops: float


def read_run(folder: Path, place: str) -> Run:
    """The run in `folder`; `place` is what its `folder` field says.

    Raises:
        WeightsError: one line that says what is damaged, or that this is no run.
    """
    curve = read_curve(folder)
    try:
        if (folder / MANIFEST).exists():
            return _weights(folder, place, curve)
        if (folder / TEACHER).exists():
            return _teacher(folder, place, curve)
        if (folder / CHECKPOINT).exists():
            return unfinished_run(folder, place, curve)
    except ValidationError as error:
        # Of a record's own fields: the manifest's reader has named its own by now.
        first = error.errors()[0]
        raise WeightsError(f"{folder}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    raise WeightsError(f"{folder} holds {METRICS} and no checkpoint: no run, or one in its first epoch")


def read_curve(folder: Path) -> list[Row]:
    """The epochs of metrics.jsonl; WeightsError for a file of another kind."""
    path = folder / METRICS
    try:
        return [Row.model_validate(row) for row in read_metrics(path)]
    except (ValidationError, UnicodeDecodeError):
        raise WeightsError(f"{path} holds other rows than a training writes") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None


def _weights(folder: Path, place: str, curve: list[Row]) -> Run:
    weights = load_weights(folder)
    manifest = weights.manifest
    calibrated: dict[str, Any] = {}
    if (folder / CALIBRATION).exists():
        calibration = load_calibration(weights)
        points = [Point.model_validate(point.model_dump()) for point in calibration.points]
        calibrated = {"exit_policy": calibration.file.exit_policy, "operating_points": points}
    return Run(
        name=manifest.name,
        folder=place,
        kind="cascade",
        finished=True,
        network=manifest.cascade.model_dump(mode="json"),
        exits=_exits(folder, manifest),
        sha256=weights.sha256,
        curve=curve,
        **_record(manifest.training),
        **calibrated,
    )


def _exits(folder: Path, manifest: Manifest) -> list[Exit]:
    costs = manifest.gflops_cumulative
    if len(manifest.results) != len(costs):
        raise WeightsError(f"{folder / MANIFEST}: {len(manifest.results)} results for {len(costs)} exits")
    return [Exit.model_validate({**row, "gflops": cost}) for row, cost in zip(manifest.results, costs, strict=True)]


def _teacher(folder: Path, place: str, curve: list[Row]) -> Run:
    path = folder / TEACHER
    read = read_json(path)
    described = TeacherFile.model_validate(read[1] if read else None)
    read_checked(folder / MODEL, described.files.get(MODEL))
    return Run(
        name=described.name,
        folder=place,
        kind="teacher",
        finished=True,
        network=described.network,
        exits=[exit.model_copy(update={"gflops": described.gflops}) for exit in described.results],
        sha256=described.files[MODEL],
        curve=curve,
        **_record(described.training),
    )


def _record(training: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run that the record of a training has."""
    validation = training.get("validation") or {}
    copied = (
        "preset",
        "teacher",
        "init",
        "seed",
        "epochs",
        "data",
        "images",
        "device",
        "torch",
        "git_commit",
        "command",
    )
    return {
        **{name: training.get(name) for name in copied},
        "recipe": training.get("recipe_name"),
        "epochs_done": training.get("epochs") or 0,
        "images_per_second": training.get("images_per_second"),
        "validation_images": validation.get("images"),
        "validation_digest": validation.get("digest"),
    }
