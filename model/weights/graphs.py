"""`stage-<k>.onnx` + `export.json`: the stages as ONNX graphs, and what they were made from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from model.errors import WeightsError
from model.weights.calibration import Calibration
from model.weights.files import read_checked, read_json, write_atomically
from model.weights.manifest import Weights

EXPORT = "export.json"
FORMAT = 1


class Origin(BaseModel):
    """What is inside the graphs beside the stages: graphs of another origin would answer otherwise."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_sha256: str
    manifest_sha256: str
    exit_policy: str
    exit_policy_parameters: dict[str, Any] = {}
    temperatures: tuple[float, ...]


class ExportFile(BaseModel):
    """export.json."""

    # Unknown keys are allowed: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    origin: Origin
    opset: int
    torch: str
    files: dict[str, str]


def origin(weights: Weights, calibration: Calibration) -> Origin:
    """The origin of graphs that fit these weights with this calibration."""
    file = calibration.file
    return Origin(
        model_sha256=weights.sha256,
        manifest_sha256=weights.manifest_sha256,
        exit_policy=file.exit_policy,
        exit_policy_parameters=file.exit_policy_parameters,
        temperatures=file.temperatures,
    )


def graph_name(stage: int) -> str:
    """The file of stage `stage` (0-based)."""
    return f"stage-{stage + 1}.onnx"


def write_graphs(folder: Path, graphs: Sequence[bytes], made_from: Origin, *, opset: int, torch: str) -> None:
    """Write one file a stage, then export.json with their hashes: it goes last, as it names the others."""
    files = {graph_name(k): hashlib.sha256(graph).hexdigest() for k, graph in enumerate(graphs)}
    for name, graph in zip(files, graphs, strict=True):
        write_atomically(folder / name, graph)
    file = ExportFile(format=FORMAT, origin=made_from, opset=opset, torch=torch, files=files)
    write_atomically(folder / EXPORT, (file.model_dump_json(indent=1) + "\n").encode())


def load_graphs(weights: Weights, calibration: Calibration) -> tuple[bytes, ...]:
    """The graphs of all stages.

    Raises:
        WeightsError: missing, damaged, or made before the weights or their calibration changed.
    """
    try:
        file = _load_file(weights.folder)
        wanted = origin(weights, calibration)
        stale = [name for name in Origin.model_fields if getattr(file.origin, name) != getattr(wanted, name)]
        if stale:
            raise WeightsError(f"the ONNX graphs in {weights.folder} were made with another {stale[0]}")
        names = [graph_name(k) for k in range(len(weights.manifest.cascade.stages))]
        return tuple(read_checked(weights.folder / name, file.files.get(name)) for name in names)
    except WeightsError as error:
        raise WeightsError(f"{error}; run msmlp export --weights {weights.folder}") from None


def _load_file(folder: Path) -> ExportFile:
    path = folder / EXPORT
    read = read_json(path)
    if read is None:
        raise WeightsError(f"{folder} holds no ONNX graphs")
    try:
        return ExportFile.model_validate(read[1])
    except ValidationError as error:
        raise WeightsError(f"{path}: {error.errors()[0]['msg']}") from None
