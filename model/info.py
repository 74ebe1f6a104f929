"""`msmlp info`: what a preset or a weights folder is."""

from pathlib import Path
from typing import Any

from msmlp.model.nn.config import preset
from msmlp.model.weights import describe, exit_costs, load_calibration, load_weights


def preset_info(name: str) -> dict[str, Any]:
    """Architecture and cost of a preset."""
    config = preset(name)
    return {"name": name, "cascade": config.model_dump(mode="json"), "exits": exit_costs(config)}


def weights_info(folder: Path) -> dict[str, Any]:
    """Architecture, cost, frontier and provenance of a weights folder; WeightsError for a damaged one."""
    weights = load_weights(folder)
    return describe(weights, load_calibration(weights))
