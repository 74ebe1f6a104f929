"""Exporting a weights folder in one number format, compared before anything is written.

float32 and float16 graphs are compared with torch on random images. int8 graphs differ a little by nature: their
accuracy is compared with float32's, on the validation images that also set their ranges.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from msmlp.model.backends.onnx.cpu import OnnxBackend
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import graphs_backend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.data import Split
from msmlp.model.errors import DeviceError, OptionError, WeightsError
from msmlp.model.export.quantize import MIXERS, OPERATORS, Ranges
from msmlp.model.export.serialize import serialized
from msmlp.model.export.source import opset_of
from msmlp.model.export.wrapped import wrapped_stages
from msmlp.model.imported import ImportedCascade
from msmlp.model.offline import batch_of, dataset_for, run_every_exit, validation_images
from msmlp.model.weights import Calibration, Weights, load_calibration, load_weights
from msmlp.model.weights.graphs import (
    GRAPH_DTYPES,
    Origin,
    graph_name,
    has_graphs,
    load_graphs,
    origin,
    remove_graphs,
    write_graphs,
)

TOLERANCES = {"float32": 1e-5, "float16": 2e-2}
"""The largest difference of a score or probability from torch's in float32."""

COMPARED = 8
"""Images that are compared, in batches of every bucket up to this number."""

RANGE_IMAGES, IMPORTED_IMAGES = 512, 64
"""About how many validation images set the ranges of int8; fewer of an imported cascade, with its large features."""


def export(folder: Path, dtype: str = "float32", data: Path | None = None) -> dict[str, Any]:
    """Write the graphs of a calibrated weights folder in `dtype`; int8 needs the `data` of the training.

    Returns:
        `dtype`, and `graphs` with the stage, file, bytes and largest difference from torch of each. For int8 without
        differences, but with `validation`: images, and the accuracy [K] of float32 and int8.

    Raises:
        CallerError: weights that are damaged or not calibrated, an unknown dtype, missing or wrong data.
        DeviceError: ONNX Runtime and torch disagree.
    """
    if dtype not in (*TOLERANCES, "int8"):
        raise OptionError("dtype", f"{dtype!r} is not supported; expected one of {', '.join((*TOLERANCES, 'int8'))}")
    if dtype != "int8" and data is not None:
        raise OptionError("data", f"{dtype} graphs need no images; --data is for --dtype int8")
    if dtype == "int8" and data is None:
        raise OptionError("data", "int8 needs validation images for its ranges: --data PATH")
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    images = validation_images(weights, dataset_for(weights, data)) if data else None
    return _export(weights, calibration, dtype, images)


def refresh_graphs(folder: Path, images: Split) -> list[str]:
    """Export float32, and other formats in the folder, unless their graphs match → the formats exported.

    `images` are the validation images, for int8. Stale graphs are removed first, so none are left if an export fails.
    """
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    stale = []
    for dtype in GRAPH_DTYPES:
        if dtype != "float32" and not has_graphs(folder, dtype):
            continue
        try:
            load_graphs(weights, calibration, dtype)
        except WeightsError:
            remove_graphs(folder, dtype)
            stale.append(dtype)
    for dtype in stale:
        _export(weights, calibration, dtype, images if dtype == "int8" else None)
    return stale


def _export(weights: Weights, calibration: Calibration, dtype: str, images: Split | None) -> dict[str, Any]:
    folder, made_from = weights.folder, origin(weights, calibration)
    if images is not None:
        graphs, validation = _int8(weights, calibration, made_from, images)
        said: list[dict[str, Any]] = [{} for _ in graphs]
    else:
        graphs, validation = _graphs(weights, made_from, dtype), None
        said = _differences(weights, calibration, graphs, dtype)
    opset, torch = _origin_of(graphs[0], weights)
    write_graphs(folder, graphs, made_from, dtype=dtype, opset=opset, torch=torch, validation=validation)
    files = [
        {"stage": k + 1, "file": graph_name(k, dtype), "bytes": len(graph), **more}
        for k, (graph, more) in enumerate(zip(graphs, said, strict=True))
    ]
    return {"dtype": dtype, "graphs": files, **({"validation": validation} if validation else {})}


def exact_backend(weights: Weights, settings: BackendSettings) -> StageBackend:
    """What serves these weights with the exits of the settings, before there are graphs of them on the disk."""
    if _is_imported(weights):
        assert settings.exits is not None
        facts = Origin(
            model_sha256=weights.sha256,
            manifest_sha256=weights.manifest_sha256,
            exit_policy=settings.exits.policy,
            temperatures=settings.exits.temperatures,
        )
        return graphs_backend(weights.manifest.cascade.shape, tuple(_graphs(weights, facts, "float32")), settings)
    from msmlp.model.backends.torch.backend import StagedBackend

    return StagedBackend(weights, settings)


@contextmanager
def one_core_backend(weights: Weights, settings: BackendSettings) -> Iterator[StageBackend]:
    """`exact_backend` that uses one core of a CPU; on a GPU the same."""
    if _is_imported(weights):
        yield exact_backend(weights, replace(settings, threads=1))
        return
    from msmlp.model.backends.torch.devices import one_thread

    backend = exact_backend(weights, settings)  # the first one sets torch's threads
    with one_thread():
        yield backend


def _is_imported(weights: Weights) -> bool:
    return isinstance(weights.manifest.cascade, ImportedCascade)


def _traces(weights: Weights, made_from: Origin, dtype: str, *, quantizable: bool = False) -> list[onnx.ModelProto]:
    if _is_imported(weights):
        if dtype != "float32":
            raise OptionError("dtype", f"an imported cascade is exported in float32 or int8, not in {dtype}")
        return wrapped_stages(weights, Exits(made_from.temperatures, made_from.exit_policy))
    # Only our own networks need torch.
    import torch

    from msmlp.model.export.graph_stage import GraphStage, traced
    from msmlp.model.nn.served import served_stages

    cascade = weights.manifest.mixers
    stages = served_stages(weights, made_from.temperatures, made_from.exit_policy)
    kind = getattr(torch, dtype)
    return [traced(GraphStage(stage, kind, quantizable=quantizable), k, cascade) for k, stage in enumerate(stages)]


def _origin_of(graph: bytes, weights: Weights) -> tuple[int, str]:
    """The opset of a graph, and the torch that made it."""
    return opset_of(onnx.load_from_string(graph)), "none" if _is_imported(weights) else version("torch")


def _graphs(weights: Weights, made_from: Origin, dtype: str) -> list[bytes]:
    return [serialized(model, k, made_from) for k, model in enumerate(_traces(weights, made_from, dtype))]


def _differences(weights: Weights, calibration: Calibration, graphs: list[bytes], dtype: str) -> list[dict[str, Any]]:
    """The largest difference of scores and probabilities from torch's per stage; DeviceError beyond TOLERANCES. There
    is no torch to compare imported graphs with."""
    if _is_imported(weights):
        return [{} for _ in graphs]
    from msmlp.model.backends.torch.backend import StagedBackend

    file, cascade = calibration.file, weights.manifest.mixers
    exits = Exits(file.temperatures, file.exit_policy)
    few = BackendSettings("cpu", capacity=COMPARED, max_batch=COMPARED)
    reference = StagedBackend(weights, replace(few, exits=exits))
    exported = OnnxBackend(cascade.shape, graphs, replace(few, dtype=dtype))
    shape = (COMPARED, cascade.image_size, cascade.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    largest = np.zeros(len(graphs))
    for bucket in exported.buckets:
        wanted, found = (run_every_exit(backend, pixels[:bucket]) for backend in (reference, exported))
        largest = np.maximum(largest, np.abs(found.scores - wanted.scores).max(axis=0))
        largest = np.maximum(largest, np.abs(found.probabilities - wanted.probabilities).max(axis=(0, 2)))
    if not largest.max() <= TOLERANCES[dtype]:
        stage = int(largest.argmax())
        raise DeviceError(
            f"stage {stage + 1} differs from torch by {largest[stage]:.1e} in ONNX Runtime, "
            f"more than the allowed {TOLERANCES[dtype]:.0e}; nothing was written"
        )
    return [{"difference": float(each)} for each in largest]


def _int8(
    weights: Weights, calibration: Calibration, made_from: Origin, images: Split
) -> tuple[list[bytes], dict[str, Any]]:
    try:
        exact: Sequence[bytes] = load_graphs(weights, calibration)
    except WeightsError:  # none yet, or stale
        exact = _graphs(weights, made_from, "float32")
    # Spread over the set, as it may be sorted by class.
    most, operators = (IMPORTED_IMAGES, OPERATORS) if _is_imported(weights) else (RANGE_IMAGES, MIXERS)
    ranges, graphs = Ranges(images.pixels[:: max(1, len(images) // most)], weights.manifest.cascade.shape), []
    for k, model in enumerate(_traces(weights, made_from, "float32", quantizable=True)):
        graphs.append(serialized(ranges.quantized(model, operators), k, made_from))
        ranges.advance(exact[k])
    return graphs, {
        "images": len(images),
        "float32": _accuracy(weights, exact, "float32", images),
        "int8": _accuracy(weights, graphs, "int8", images),
    }


def _accuracy(weights: Weights, graphs: Sequence[bytes], dtype: str, images: Split) -> list[float]:
    batch = batch_of(weights.manifest.cascade)
    backend = OnnxBackend(
        weights.manifest.cascade.shape, graphs, BackendSettings("cpu", dtype, capacity=batch, max_batch=batch)
    )
    right = run_every_exit(backend, images.pixels).correct(images.labels)
    return [float(share) for share in right.mean(axis=0)]
