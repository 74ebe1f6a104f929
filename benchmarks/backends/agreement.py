"""What other backends and formats say of the same images, beside torch in float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from msmlp.model.data import Split
from msmlp.model.exits import exit_of
from msmlp.model.offline import Outputs


def agreement(outputs: Mapping[str, Outputs], images: Split, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Of each: accuracy [K], and beside the first the largest difference of a score, and images that leave elsewhere or
    with another label under `thresholds`."""
    reference = next(iter(outputs.values()))
    rows, cut = np.arange(len(images)), np.array(thresholds)
    left = exit_of(reference.scores, cut)
    told = reference.predictions[rows, left - 1]
    found = {}
    for name, each in outputs.items():
        exits = exit_of(each.scores, cut)
        found[name] = {
            "accuracy": (each.predictions == images.labels[:, None]).mean(axis=0).tolist(),
            "largest_difference": float(np.abs(each.scores - reference.scores).max()),
            "other_exits": int((exits != left).sum()),
            "other_labels": int((each.predictions[rows, exits - 1] != told).sum()),
            "point_accuracy": float((each.predictions[rows, exits - 1] == images.labels).mean()),
        }
    return {"images": len(images), "thresholds": list(thresholds), "by_backend": found}
