"""The weights folder: what training leaves and serving loads. Nothing pickled is ever loaded.

`manifest.json` + `model.safetensors` are immutable once trained, `calibration.json` + `calibration.safetensors` are
rewritten by `msmlp calibrate`, `export.json` + `stage-<k>.onnx` by `msmlp export`.
"""

from msmlp.model.weights.calibration import (
    Calibration,
    Expectation,
    OperatingPoint,
    load_calibration,
    model_version,
    write_calibration,
)
from msmlp.model.weights.graphs import load_graphs
from msmlp.model.weights.info import describe, exit_costs
from msmlp.model.weights.manifest import Manifest, Weights, load_weights, write_weights

__all__ = [
    "Calibration",
    "Expectation",
    "Manifest",
    "OperatingPoint",
    "Weights",
    "describe",
    "exit_costs",
    "load_calibration",
    "load_graphs",
    "load_weights",
    "model_version",
    "write_calibration",
    "write_weights",
]
