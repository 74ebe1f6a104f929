"""Costs in round numbers, and a table of three exits whose scores say where an image leaves."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msmlp.model.weights.calibration import Table
from msmlp.plan.costs import Costs
from msmlp.plan.replica import Limits, Replica
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.engine.messages import ExitParameters

HOST = 0.0002
STAGES = 0.001, 0.002, 0.004
"""Seconds of a batch of one image."""
SHARES = 0.5, 0.3, 0.2
"""Of images that leave at each exit; exit 1 is right for 70 % of all images, exit 2 for 80 %, exit 3 for 90 %."""
BUCKETS = 1, 2, 4, 8, 16


def costs(**changes: Any) -> Costs:
    """A batch of b images takes as long as (1 + b) / 2 of one image."""
    rows = tuple(tuple(seconds * (1 + size) / 2 for size in BUCKETS) for seconds in STAGES)
    known: dict[str, Any] = {
        "name": "synthetic",
        "device": "cpu",
        "backend": "onnx",
        "layout": "inline",
        "permits": 512,
        "buckets": BUCKETS,
        "stage_seconds": rows,
        "request_seconds": HOST,
        "image_seconds": HOST / 4,
        "refusal_seconds": HOST / 2,
    }
    return Costs(**{**known, **changes})


def table(images: int = 1000) -> Table:
    rng = np.random.default_rng(0)
    exits = rng.choice((1, 2, 3), images, p=SHARES)
    scores = np.where(np.arange(1, 4) >= exits[:, None], 0.9, 0.1).astype(np.float32)
    return Table(scores, rng.random((images, 3)) < (0.7, 0.8, 0.9), np.array([0.001, 0.003, 0.007]))


class Points:
    """In place of OperatingPoints: thresholds of 0.5, and under any brown-out the first exit for all."""

    def resolve(self, options: object, level: int = 0) -> Any:
        thresholds = np.array([0.0, 0.0] if level else [0.5, 0.5])
        source = "brownout" if level else "default"
        return SimpleNamespace(parameters=ExitParameters(thresholds, 1, 3), source=source)

    def costs(self) -> tuple[float, ...]:
        return (0.003, *(0.001,) * LEVELS)


Build = Callable[..., Replica]


@pytest.fixture
def replica() -> Build:
    def build(limits: Limits | None = None, seed: int = 0, **changes: Any) -> Replica:
        rng = np.random.default_rng(seed)
        return Replica(costs(**changes), table(), Points(), limits or Limits(), rng)  # type: ignore[arg-type]

    return build
