"""Temperature scaling, and cross-fitting on folds of the validation images.

One temperature per exit makes a threshold mean the same at every exit. Temperatures and thresholds look better on the
images that chose them than on others; cross-fitting judges each image by those that the other folds choose.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.solvers import best_within, joint_frontier
from msmlp.model.exits.policies import exit_policy
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.calibration import Table

BOUNDS = (0.05, 20.0)
"""An exit that is always wrong on the images would have an infinite temperature."""

FOLDS = 5


def fit_temperatures(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The temperature of every exit, from probabilities [N, K, classes] at temperature 1 and labels [N]."""
    return tuple(fit_temperature(probabilities[:, k], labels) for k in range(probabilities.shape[1]))


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The most likely temperature in BOUNDS for probabilities [N, classes] and `labels` [N], smoothed.

    Each label counts as (N * one-hot + 1 / classes) / (N + 1), as if one image more had no label. So an exit that is
    right on all N counts as wrong about once in N + 1, not never; among thousands this makes no difference. Smoothed
    targets are Platt's ("Probabilistic outputs for support vector machines", 1999), a maximum a posteriori estimate.

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
    """Probabilities [N, K, classes] at temperature 1 → at one temperature per exit."""
    logits = log_probabilities(probabilities) / np.array(temperatures)[:, None]
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.asarray(weights / weights.sum(axis=2, keepdims=True), dtype=np.float32)


def log_probabilities(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits up to a constant per image, which softmax ignores; an underflow counts as the smallest float32."""
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _expected(gaps: NDArray[np.float64], inverse: float) -> float:
    """The mean over images of the expected logit minus the label's, at b = `inverse`; rises with b."""
    scaled = np.exp(inverse * (gaps - gaps.max(axis=1, keepdims=True)))
    return float(((scaled * gaps).sum(axis=1) / scaled.sum(axis=1)).mean())


def folds_of(identities: NDArray[np.uint8], folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold 0...folds-1 for each image, by the hash of its pixels [N, 32]: the same in every layout of a data set."""
    _, rank = np.unique(identities, axis=0, return_inverse=True)
    return np.asarray(rank.reshape(-1) % folds, dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """The images held out (a mask [N]), and the table of all images with scores that only the others decide."""

    held: NDArray[np.bool_]
    table: Table


def refitted(
    policy: str,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    table: Table,
    folds: NDArray[np.int64],
    fitting: NDArray[np.bool_] | None = None,
) -> list[Fold]:
    """Every fold, scored with temperatures fitted to the others; none if a fold leaves no images to fit to.

    `probabilities` [N, K, classes] are those at temperature 1. Temperatures change neither correctness nor costs, which
    are the table's. `fitting` [N] says which images may be fitted to at all; None for all.
    """
    score = exit_policy(policy)
    made = []
    for fold in np.unique(folds):
        held = folds == fold
        fitted = ~held if fitting is None else ~held & fitting
        if not fitted.any():
            return []
        answers = tempered(probabilities, fit_temperatures(probabilities[fitted], labels[fitted]))
        scores = np.stack([score(answers[:, k]) for k in range(table.exits)], axis=1)
        made.append(Fold(held, Table(scores, table.correct, table.costs)))
    return made


def held_out(folds: list[Fold], costs: list[float]) -> NDArray[np.int64]:
    """The exits 1...K [costs, N] at which images leave with thresholds from the frontier of the other folds.

    These are the best thresholds whose mean cost is at most that of the row. `folds` is not empty.
    """
    left = np.zeros((len(costs), len(folds[0].held)), dtype=np.int64)
    for fold in folds:
        frontier = joint_frontier(fold.table.take(~fold.held))
        for row, cost in zip(left, costs, strict=True):
            thresholds = np.array(best_within(frontier, cost).thresholds)
            row[fold.held] = exit_of(fold.table.scores[fold.held], thresholds)
    return left
