"""The parameters of fitted exit policies (model/policies.py), from validation images; deterministic, in numpy.

Both are convex: Newton's method, with a little pull towards where it starts, so that few images decide little.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.temperature import log_probabilities
from msmlp.model.policies import FITTED, Ensemble, features

Floats = NDArray[np.float64]

PULL = 1.0
"""Strength of the pull, as that of one image."""
STEPS = 50


def fit_policy(name: str, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """What calibration.json keeps of an exit policy; {} for a plain one.

    Args:
        name: the exit policy.
        probabilities: [N, K, classes], each exit's own, tempered.
        labels: [N].
    """
    if name not in FITTED:
        return {}
    if name == "ensemble":
        return {"weights": _fit_ensemble(probabilities, labels)}
    return {"coefficients": _fit_gates(probabilities, labels)}


def _fit_ensemble(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> list[list[float]]:
    """Weights (own, before) of every exit but the first, by the likelihood of the labels, one exit after the other."""
    answered = probabilities[:, 0]
    rows = []
    for k in range(1, probabilities.shape[1]):
        both = np.stack([log_probabilities(probabilities[:, k]), log_probabilities(answered)], axis=2)
        own, before = _newton(partial(_softmax_loss, both, labels), np.array([1.0, 0.0])).tolist()
        rows.append([own, before])
        answered = Ensemble(own, before)(probabilities[:, k], answered)[0]
    return rows


def _fit_gates(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> list[list[float]]:
    """Coefficients of every exit but the last.

    The regret of stopping is g = right at this exit - right at the last, -1, 0 or 1. The gate is fitted by logistic
    regression to (1 + g) / 2, whose expectation rises with the expected regret: leaving by a threshold on it lets those
    go first that lose least.
    """
    right = probabilities.argmax(axis=2) == labels[:, None]
    rows = []
    for k in range(probabilities.shape[1] - 1):
        columns = features(probabilities[:, k], probabilities[:, k - 1] if k else None)
        x = np.stack([np.ones(len(labels)), *(np.asarray(c, dtype=np.float64) for c in columns)], axis=1)
        target = (1 + right[:, k].astype(float) - right[:, -1]) / 2
        rows.append(_newton(partial(_logistic_loss, x, target), np.zeros(x.shape[1])).tolist())
    return rows


Loss = Callable[[Floats], tuple[float, Floats, Floats]]
"""Parameters [P] → the sum over images, its gradient [P] and Hessian [P, P]."""


def _newton(loss: Loss, start: Floats) -> Floats:
    """The minimum of `loss` plus the pull towards `start`; a step that does not help is halved."""
    at = start.copy()
    value, slope, curve = loss(at)
    for _ in range(STEPS):
        step = np.linalg.solve(curve + PULL * np.eye(len(at)), slope + PULL * (at - start))
        for _ in range(STEPS):
            there = at - step
            new = loss(there)
            if new[0] + _pull(there, start) <= value + _pull(at, start):
                break
            step = step / 2
        else:
            return at
        at, (value, slope, curve) = there, new
        if np.abs(step).max() < 1e-10:
            break
    return at


def _pull(at: Floats, start: Floats) -> float:
    return PULL / 2 * float(((at - start) ** 2).sum())


def _softmax_loss(inputs: Floats, labels: NDArray[np.int64], weights: Floats) -> tuple[float, Floats, Floats]:
    """Cross-entropy of softmax(inputs @ weights), inputs [N, classes, P]."""
    logits = inputs @ weights
    logits -= logits.max(axis=1, keepdims=True)
    total = np.exp(logits).sum(axis=1, keepdims=True)
    p = np.exp(logits) / total
    rows = np.arange(len(labels))
    value = float((np.log(total[:, 0]) - logits[rows, labels]).sum())
    mean = np.einsum("nc,ncp->np", p, inputs)
    slope = (mean - inputs[rows, labels]).sum(axis=0)
    curve = np.einsum("nc,ncp,ncq->pq", p, inputs, inputs) - mean.T @ mean
    return value, slope, curve


def _logistic_loss(x: Floats, target: Floats, weights: Floats) -> tuple[float, Floats, Floats]:
    """Cross-entropy of sigmoid(x @ weights) against targets in [0, 1], x [N, P]."""
    z = x @ weights
    p = 1 / (1 + np.exp(-np.clip(z, -50, 50)))
    value = float((np.logaddexp(0, z) - target * z).sum())
    return value, x.T @ (p - target), (x * (p * (1 - p))[:, None]).T @ x
