"""A weights folder or a preset as one document, for `msmlp info` and `GET /model`."""

from pathlib import Path
from typing import Any

from msmlp.model.nn.config import CascadeConfig, cumulative_gflops, preset
from msmlp.model.weights.calibration import Calibration, load_calibration, model_version
from msmlp.model.weights.manifest import Weights, load_weights


def preset_info(name: str) -> dict[str, Any]:
    config = preset(name)
    return {"name": name, "cascade": config.model_dump(mode="json"), "exits": exit_costs(config)}


def weights_info(folder: Path) -> dict[str, Any]:
    weights = load_weights(folder)
    return describe(weights, load_calibration(weights))


def describe(weights: Weights, calibration: Calibration) -> dict[str, Any]:
    manifest, file = weights.manifest, calibration.file
    return {
        "name": manifest.name,
        "version": model_version(weights, calibration),
        "cascade": manifest.cascade.model_dump(mode="json"),
        "classes": list(manifest.classes),
        "preprocess": manifest.preprocess.model_dump(mode="json"),
        "exits": exit_costs(manifest.cascade),
        "exit_policy": file.exit_policy,
        "exit_policy_parameters": file.exit_policy_parameters,
        "temperatures": list(file.temperatures),
        "stage_ms": None if file.stage_ms is None else list(file.stage_ms),
        "operating_points": [point.model_dump(mode="json") for point in calibration.points],
        "training": manifest.training,
        "results": manifest.results,
    }


def exit_costs(config: CascadeConfig) -> list[dict[str, Any]]:
    """Cumulative GFLOPs of every exit, as served and in the paper's form."""
    served, paper = cumulative_gflops(config), cumulative_gflops(config, folded=False)
    return [
        {"exit": k, "gflops": g, "gflops_unfolded": u} for k, (g, u) in enumerate(zip(served, paper, strict=True), 1)
    ]
