"""`stage-<k>.onnx` + `export.json`: the stages as ONNX graphs, and what they were made from.

Other formats have names of their own: `stage-<k>.int8.onnx` + `export.int8.json`, and likewise for float16.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from msmlp.model.errors import WeightsError
from msmlp.model.weights.calibration import Calibration
from msmlp.model.weights.files import read_checked, read_json, validated, write_atomically
from msmlp.model.weights.manifest import Weights

FORMAT = 1
GRAPH_DTYPES = ("float32", "float16", "int8")


class Origin(BaseModel):
    """What the graphs contain: with another origin their answers would differ."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_sha256: str
    manifest_sha256: str
    exit_policy: str
    temperatures: tuple[float, ...]


class ExportFile(BaseModel):
    # Unknown keys are allowed: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    origin: Origin
    opset: int
    torch: str
    files: dict[str, str]
    validation: dict[str, Any] | None = None
    """For int8: the number of validation images, and the accuracy of every exit in float32 and in int8."""


def origin(weights: Weights, calibration: Calibration) -> Origin:
    """The origin of graphs that fit these weights with this calibration."""
    file = calibration.file
    return Origin(
        model_sha256=weights.sha256,
        manifest_sha256=weights.manifest_sha256,
        exit_policy=file.exit_policy,
        temperatures=file.temperatures,
    )


def graph_name(stage: int, dtype: str = "float32") -> str:
    return f"stage-{stage + 1}{_infix(dtype)}.onnx"


def export_name(dtype: str = "float32") -> str:
    return f"export{_infix(dtype)}.json"


def _infix(dtype: str) -> str:
    return "" if dtype == "float32" else f".{dtype}"


def write_graphs(
    folder: Path,
    graphs: Sequence[bytes],
    made_from: Origin,
    *,
    dtype: str = "float32",
    opset: int,
    torch: str,
    validation: dict[str, Any] | None = None,
) -> None:
    """Write one file per stage, then export.json, which names them all."""
    files = {graph_name(k, dtype): hashlib.sha256(graph).hexdigest() for k, graph in enumerate(graphs)}
    for name, graph in zip(files, graphs, strict=True):
        write_atomically(folder / name, graph)
    file = ExportFile(format=FORMAT, origin=made_from, opset=opset, torch=torch, files=files, validation=validation)
    text = file.model_dump_json(indent=1, exclude_none=True)
    write_atomically(folder / export_name(dtype), (text + "\n").encode())


def has_graphs(folder: Path, dtype: str = "float32") -> bool:
    """Whether graphs were written there; they may no longer match."""
    return (folder / export_name(dtype)).is_file()


def remove_graphs(folder: Path, dtype: str = "float32") -> None:
    """Delete the graphs of a format, export.json first: without it nothing reads the others."""
    (folder / export_name(dtype)).unlink(missing_ok=True)
    for path in folder.glob(f"stage-*{_infix(dtype)}.onnx"):
        # Other formats have a name between the number and the suffix.
        if path.name.removeprefix("stage-").removesuffix(f"{_infix(dtype)}.onnx").isdigit():
            path.unlink()


def load_graphs(weights: Weights, calibration: Calibration, dtype: str = "float32") -> tuple[bytes, ...]:
    """The graphs of all stages; WeightsError if they are missing, damaged or do not match the calibration."""
    try:
        path = weights.folder / export_name(dtype)
        read = read_json(path)
        if read is None:
            raise WeightsError(f"{weights.folder} has no {dtype} ONNX graphs")
        file = validated(ExportFile, read[1], path)
        wanted = origin(weights, calibration)
        stale = [name for name in Origin.model_fields if getattr(file.origin, name) != getattr(wanted, name)]
        if stale:
            raise WeightsError(f"the {dtype} ONNX graphs in {weights.folder} do not match its {stale[0]}")
        names = [graph_name(k, dtype) for k in range(len(weights.manifest.cascade.stages))]
        return tuple(read_checked(weights.folder / name, file.files.get(name)) for name in names)
    except WeightsError as error:
        more = {"float32": "", "int8": " --dtype int8 --data PATH"}.get(dtype, f" --dtype {dtype}")
        raise WeightsError(f"{error}; run msmlp export --weights {weights.folder}{more}") from None
