"""`msmlp export`: every stage as it is served, as an ONNX graph in the weights folder.

A graph holds all that model/served.py computes: normalisation, the folded stage, temperature and exit policy. Its
inputs are pixels uint8 [n, H, W, 3], after stage 1 also upstream features [n, S, C] and, where the exit policy reads
it, what the exit before answered (`previous`, [n, classes]); its outputs are features, probabilities and score. What
comes out of ONNX Runtime is compared with torch before anything is written.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from model.backends.onnx import OnnxBackend
from model.backends.torch import TorchBackend
from model.config import CascadeConfig
from model.errors import DeviceError, WeightsError
from model.offline import run_every_exit
from model.served import ServedStage, served_stages
from model.weights import Calibration, Weights, load_calibration, load_weights
from model.weights.graphs import Origin, graph_name, origin, write_graphs

OPSET = 20
"""The first with GELU as one operator."""

MAX_GRAPH_BYTES = 2**31 - 1
"""What one protobuf message can hold; larger weights would have to stand in a file beside it."""

TOLERANCE = 1e-5
"""How far a score or probability may be from torch's, both in float32."""

COMPARED = 8
"""Images that are compared, in batches of every bucket up to so many."""


def export(folder: Path) -> list[dict[str, Any]]:
    """Write the graphs of a calibrated weights folder → for each its stage, file, bytes and difference from torch.

    Raises:
        WeightsError: damaged or not calibrated, or a stage too large for one file.
        DeviceError: ONNX Runtime and torch disagree.
    """
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    made_from = origin(weights, calibration)
    stages = served_stages(weights, made_from.temperatures, made_from.exit_policy, made_from.exit_policy_parameters)
    graphs = [_graph(stage, k, weights.manifest.cascade, made_from) for k, stage in enumerate(stages)]
    differences = _differences(weights, calibration, graphs)
    write_graphs(folder, graphs, made_from, opset=OPSET, torch=torch.__version__)
    return [
        {"stage": k + 1, "file": graph_name(k), "bytes": len(graph), "difference": difference}
        for k, (graph, difference) in enumerate(zip(graphs, differences, strict=True))
    ]


def _graph(stage: ServedStage, k: int, cascade: CascadeConfig, made_from: Origin) -> bytes:
    model = _traced(stage, k, cascade)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Stack traces, with the paths of the machine that exported.
        part.ClearField("metadata_props")
    facts = {
        "msmlp.stage": str(k + 1),
        "msmlp.model_sha256": made_from.model_sha256,
        "msmlp.exit_policy": made_from.exit_policy,
        "msmlp.temperature": repr(made_from.temperatures[k]),
    }
    onnx.helper.set_model_props(model, facts)
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise WeightsError(f"stage {k + 1} takes {model.ByteSize()} bytes, an ONNX file holds {MAX_GRAPH_BYTES}")
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _traced(stage: ServedStage, k: int, cascade: CascadeConfig) -> onnx.ModelProto:
    """The exporter's own graph of one stage, for batches of any size."""
    batch, size = torch.export.Dim("n"), cascade.image_size
    # A batch of 1 would be taken for a constant.
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    upstream = torch.zeros(2, cascade.tokens(k - 1), cascade.stages[k - 1].width) if k else None
    previous = [torch.full((2, cascade.classes), 1 / cascade.classes)] * stage.policy.reads_previous
    # The exporter warns of torchvision, which nothing here needs, and of its own calls within torch.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            stage,
            (pixels, upstream, *previous),
            input_names=["pixels", *["upstream"] * bool(k), *["previous"] * len(previous)],
            output_names=["features", "probabilities", "score"],
            dynamic_shapes=({0: batch}, {0: batch} if k else None, *[{0: batch}] * len(previous)),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _differences(weights: Weights, calibration: Calibration, graphs: list[bytes]) -> list[float]:
    """The largest difference of scores and probabilities from torch's, one a stage."""
    file, cascade = calibration.file, weights.manifest.cascade
    reference = TorchBackend(
        weights,
        temperatures=file.temperatures,
        exit_policy=file.exit_policy,
        policy_parameters=file.exit_policy_parameters,
        capacity=COMPARED,
        max_batch=COMPARED,
    )
    exported = OnnxBackend(cascade, graphs, capacity=COMPARED, max_batch=COMPARED)
    shape = (COMPARED, cascade.image_size, cascade.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    largest = np.zeros(len(graphs))
    for bucket in exported.buckets:
        wanted, found = (run_every_exit(backend, pixels[:bucket]) for backend in (reference, exported))
        largest = np.maximum(largest, np.abs(found.scores - wanted.scores).max(axis=0))
        largest = np.maximum(largest, np.abs(found.probabilities - wanted.probabilities).max(axis=(0, 2)))
    if not largest.max() <= TOLERANCE:
        stage = int(largest.argmax())
        raise DeviceError(
            f"stage {stage + 1} differs from torch by {largest[stage]:.1e} in ONNX Runtime, "
            f"{TOLERANCE:.0e} is allowed; nothing was written"
        )
    return [float(each) for each in largest]
