"""`msmlp info`: what a preset or a weights folder is."""

from pathlib import Path
from typing import Any

from model.config import CascadeConfig, preset
from model.flops import cumulative_gflops
from model.weights import load_calibration, load_weights, model_version


def preset_info(name: str) -> dict[str, Any]:
    """Architecture and cost of a preset."""
    config = preset(name)
    return {"name": name, "cascade": config.model_dump(mode="json"), "exits": exit_costs(config)}


def weights_info(folder: Path) -> dict[str, Any]:
    """Architecture, cost, frontier and provenance of a weights folder; WeightsError for a damaged one."""
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    manifest = weights.manifest
    return {
        "name": manifest.name,
        "version": model_version(weights, calibration),
        "cascade": manifest.cascade.model_dump(mode="json"),
        "classes": list(manifest.classes),
        "preprocess": manifest.preprocess.model_dump(mode="json"),
        "exits": exit_costs(manifest.cascade),
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
