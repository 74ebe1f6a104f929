"""Exit policies: from a stage's probabilities to the score that is compared with a threshold.

A score lies in [0, 1]; higher is more certain. Each policy is written once for numpy and torch (`xp`).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from msmlp.model.errors import OptionError

ExitPolicy = Callable[..., Any]
"""(probabilities [n, classes], xp) → score [n], both arrays of `xp`."""


def max_probability(probabilities: Any, xp: Any = np) -> Any:
    return xp.amax(probabilities, axis=1)


def margin(probabilities: Any, xp: Any = np) -> Any:
    """The largest entry minus the second largest; 0 for a tie."""
    best = xp.amax(probabilities, axis=1)
    is_best = probabilities == best[:, None]
    second = xp.amax(xp.where(is_best, 0.0, probabilities), axis=1)
    return xp.where(xp.sum(is_best, axis=1) > 1, 0.0, best - second)


def entropy(probabilities: Any, xp: Any = np) -> Any:
    """1 - H / log C: 0 for the uniform distribution, 1 if one class has everything."""
    # p log p tends to 0 with p; the smallest normal float32 keeps the logarithm finite.
    logs = xp.log(xp.clip(probabilities, float(np.finfo(np.float32).tiny), 1.0))
    # A product per row: the rounding of ONNX Runtime's sum over an axis depends on the place in the batch.
    minus_entropy = xp.einsum("nc,nc->n", probabilities, logs)
    score = 1 + minus_entropy / math.log(probabilities.shape[1])
    return xp.clip(score, 0.0, 1.0)


EXIT_POLICIES: dict[str, ExitPolicy] = {
    "max-probability": max_probability,
    "margin": margin,
    "entropy": entropy,
}


REMOVED_POLICIES = ("ensemble", "gate")
"""Exit policies of 0.1, which also read the previous exit."""


def exit_policy(name: str) -> ExitPolicy:
    if name not in EXIT_POLICIES:
        why = "was removed in 0.2" if name in REMOVED_POLICIES else "is unknown"
        raise OptionError("exit policy", f"{name!r} {why}; expected one of {', '.join(EXIT_POLICIES)}")
    return EXIT_POLICIES[name]
