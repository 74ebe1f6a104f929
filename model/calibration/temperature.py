"""Temperature scaling: one number an exit, so that one threshold means the same at every exit."""

import numpy as np
from numpy.typing import NDArray

BOUNDS = (0.05, 20.0)
"""An exit that is always right (or wrong) on the images would have a temperature of 0 (or infinity)."""


def fit_temperatures(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The temperature of every exit.

    Args:
        probabilities: [N, K, classes] at temperature 1.
        labels: [N].
    """
    return tuple(fit_temperature(probabilities[:, k], labels) for k in range(probabilities.shape[1]))


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature in BOUNDS with the least mean negative log-likelihood of `labels` [N] on [N, classes].

    With logits z and b = 1 / T the loss is mean(logsumexp(b z) - b z_label): convex in b, so its slope is bisected.
    """
    logs = log_probabilities(probabilities)
    own = logs[np.arange(len(labels)), labels]
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if _slope(logs, own, low) >= 0:
        return BOUNDS[1]
    if _slope(logs, own, high) <= 0:
        return BOUNDS[0]
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _slope(logs, own, middle) < 0 else (low, middle)
    return float(2 / (low + high))


def log_probabilities(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits but for a constant an image, which a softmax does not see; an underflow counts as the smallest float32."""
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _slope(logs: NDArray[np.float64], own: NDArray[np.float64], inverse: float) -> float:
    """d loss / d b at b = `inverse`: the mean of the expected logit minus the label's."""
    scaled = np.exp(inverse * (logs - logs.max(axis=1, keepdims=True)))
    return float(((scaled * logs).sum(axis=1) / scaled.sum(axis=1) - own).mean())
