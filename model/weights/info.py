"""A weights folder or a preset as one document, for `msmlp info` and `GET /model`."""

from pathlib import Path
from typing import Any

from msmlp.model.nn.config import preset
from msmlp.model.weights.calibration import Calibration, load_calibration, model_version
from msmlp.model.weights.manifest import AnyCascade, Manifest, Weights, cumulative, load_weights


def preset_info(name: str) -> dict[str, Any]:
    config = preset(name)
    return {"name": name, "cascade": config.model_dump(mode="json"), "exits": exit_costs(config)}


def weights_info(folder: Path) -> dict[str, Any]:
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    cost = calibration.file.cost
    return {**describe(weights, calibration), "cost": cost, "audit": audit_record(weights.manifest, calibration)}


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


def audit_record(manifest: Manifest, calibration: Calibration) -> dict[str, Any]:
    """What every exit and operating point reached on the audit images; without any, `reason` says why.

    `leak` says why the network may have been trained on them, or on validation images, after all.
    """
    found, leak = calibration.file.audit, _part(manifest.training, "init").get("leak")
    if found is None:
        return {"images": 0, "reason": no_audit(manifest.training), "leak": leak}
    return {**found.model_dump(mode="json"), "leak": leak}


def _part(training: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a manifest's `training`; empty if it is missing or not an object."""
    part = training.get(name)
    return part if isinstance(part, dict) else {}


def no_audit(training: dict[str, Any]) -> str:
    """Why a network has no audit set, by its manifest's `training`."""
    return str(_part(training, "audit").get("reason", "the weights were trained before audit sets existed"))


def exit_costs(cascade: AnyCascade) -> list[dict[str, Any]]:
    """Cumulative GFLOPs of every exit, as served and in the paper's form."""
    served, paper = cumulative(cascade), cumulative(cascade, folded=False)
    return [
        {"exit": k, "gflops": g, "gflops_unfolded": u} for k, (g, u) in enumerate(zip(served, paper, strict=True), 1)
    ]
