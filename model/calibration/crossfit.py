"""Cross-fitting: the best of many thousands of settings is optimistic on the images it was chosen on, and so are scores
on images that their temperatures were fitted to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.joint import joint_frontier
from msmlp.model.calibration.settings import Table, best_within
from msmlp.model.calibration.temperature import fit_temperatures, tempered
from msmlp.model.errors import DataError
from msmlp.model.exits import exit_of
from msmlp.model.scores import exit_policy

FOLDS = 5


def folds_of(identities: NDArray[np.uint8], folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold 0...folds-1 for images named by the hashes of their pixels [N, 32].

    The images alone decide, so every layout of a data set gives the same folds; equal images share one.
    """
    _, rank = np.unique(identities, axis=0, return_inverse=True)
    return np.asarray(rank.reshape(-1) % folds, dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """Images that are held out (a mask [N]), and the table of all images, scored as the others alone decide."""

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
    """Every fold, scored with temperatures fitted to the others.

    Args:
        policy: the exit policy.
        probabilities: [N, K, classes], each exit's own, at temperature 1.
        labels: [N].
        table: of these images; its correctness and costs, which no temperature changes, are taken over.
        folds: the fold of each image [N].
        fitting: which images may be fitted to at all [N]; all without it.

    Returns:
        Nothing where a single fold leaves no others, or others that must not be fitted to.
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
    """For each fold and each mean cost: the frontier of the others gives the thresholds that cost at most that.

    Returns:
        The exits 1...K at which images leave that had no say in the thresholds, [costs, N].

    Raises:
        DataError: no folds, as of a single image.
    """
    if not folds:
        raise DataError("too few validation images to hold any out")
    left = np.zeros((len(costs), len(folds[0].held)), dtype=np.int64)
    for fold in folds:
        frontier = joint_frontier(fold.table.take(~fold.held))
        for row, cost in zip(left, costs, strict=True):
            thresholds = np.array(best_within(frontier, cost).thresholds)
            row[fold.held] = exit_of(fold.table.scores[fold.held], thresholds)
    return left
