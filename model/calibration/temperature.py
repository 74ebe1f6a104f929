"""Temperature scaling: one number an exit, so that one threshold means the same at every exit."""

import numpy as np
from numpy.typing import NDArray

BOUNDS = (0.05, 20.0)
"""An exit that is always wrong on the images would have an infinite temperature."""


def fit_temperatures(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The temperature of every exit.

    Args:
        probabilities: [N, K, classes] at temperature 1.
        labels: [N].
    """
    return tuple(fit_temperature(probabilities[:, k], labels) for k in range(probabilities.shape[1]))


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature in BOUNDS that is likeliest for `labels` [N] on [N, classes] and one image more without a label.

    Each label counts as (N * one-hot + 1 / classes) / (N + 1): all images together hold one pseudo-observation that is
    for no class. A few images make no exit surer than they can tell, and among thousands it goes unnoticed. An exit
    that is right on all N is taken to be wrong once in about N + 1, not never. Smoothed targets are Platt's
    ("Probabilistic outputs for support vector machines", 1999), as a maximum a posteriori estimate.

    With logits z and b = 1 / T the loss is mean(logsumexp(b z) - b z_target): convex in b, so its slope is bisected.
    """
    logs = log_probabilities(probabilities)
    gaps = logs - logs[np.arange(len(labels)), labels, None]
    target = gaps.mean() / (len(labels) + 1)
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if _expected(gaps, low) >= target:
        return BOUNDS[1]
    if _expected(gaps, high) <= target:
        return BOUNDS[0]
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _expected(gaps, middle) < target else (low, middle)
    return float(2 / (low + high))


def tempered(probabilities: NDArray[np.float32], temperatures: tuple[float, ...]) -> NDArray[np.float32]:
    """Probabilities [N, K, classes] at temperature 1 → at one temperature an exit."""
    logits = log_probabilities(probabilities) / np.array(temperatures)[:, None]
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.asarray(weights / weights.sum(axis=2, keepdims=True), dtype=np.float32)


def log_probabilities(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits but for a constant an image, which a softmax does not see; an underflow counts as the smallest float32."""
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _expected(gaps: NDArray[np.float64], inverse: float) -> float:
    """The mean over images of the expected logit minus the label's, at b = `inverse`; rises with b."""
    scaled = np.exp(inverse * (gaps - gaps.max(axis=1, keepdims=True)))
    return float(((scaled * gaps).sum(axis=1) / scaled.sum(axis=1)).mean())
