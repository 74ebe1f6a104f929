"""Cross-fitting: the best of many thousands of settings is optimistic on the images it was chosen on, and so are scores
on images that their temperatures and parameters were fitted to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.fit import Fit
from msmlp.model.calibration.joint import joint_frontier
from msmlp.model.calibration.settings import Table, best_within
from msmlp.model.errors import DataError
from msmlp.model.exits import exit_of

FOLDS = 5


def folds_of(identities: NDArray[np.uint8], folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold 0...folds-1 for images named by the hashes of their pixels [N, 32].

    The images alone decide, so every layout of a data set gives the same folds; equal images share one.
    """
    _, rank = np.unique(identities, axis=0, return_inverse=True)
    return np.asarray(rank.reshape(-1) % folds, dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """Images that are held out (a mask [N]), their own table, and that of the others: by what the others decided."""

    held: NDArray[np.bool_]
    own: Table
    others: Table


def refitted(
    policy: str,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    costs: NDArray[np.float64],
    folds: NDArray[np.int64],
    fitting: NDArray[np.bool_] | None = None,
) -> list[Fold]:
    """Every fold, with temperatures and parameters fitted anew to the others.

    Args:
        policy: the exit policy.
        probabilities: [N, K, classes], each exit's own, at temperature 1.
        labels: [N].
        costs: cumulative, of each exit [K].
        folds: the fold of each image [N].
        fitting: which images may be fitted to at all [N]; all without it.

    Returns:
        Nothing where a single fold leaves no others, or others that must not be fitted to.
    """
    made = []
    for fold in np.unique(folds):
        held = folds == fold
        fitted = ~held if fitting is None else ~held & fitting
        if not fitted.any():
            return []
        fit = Fit.of(policy, probabilities[fitted], labels[fitted])
        own, others = (fit.table(probabilities[rows], labels[rows], costs) for rows in (held, ~held))
        made.append(Fold(held, own, others))
    return made


@dataclass(frozen=True)
class HeldOut:
    """What is measured of images that had no say: exits 1...K left by [costs, N], right or not at every exit [N, K]."""

    left: NDArray[np.int64]
    correct: NDArray[np.bool_]

    def right(self) -> NDArray[np.bool_]:
        """Whether each image was right where it left, [costs, N]."""
        return self.correct[np.arange(len(self.correct)), self.left - 1]


def held_out(folds: list[Fold], costs: list[float]) -> HeldOut:
    """For each fold and each mean cost: the frontier of the others gives the thresholds that cost at most so much.

    Raises:
        DataError: no folds, as of a single image.
    """
    if not folds:
        raise DataError("too few validation images to hold any out")
    images, exits = len(folds[0].held), folds[0].own.exits
    left = np.zeros((len(costs), images), dtype=np.int64)
    correct = np.zeros((images, exits), dtype=np.bool_)
    for fold in folds:
        frontier = joint_frontier(fold.others)
        correct[fold.held] = fold.own.correct
        for row, cost in zip(left, costs, strict=True):
            row[fold.held] = exit_of(fold.own.scores, np.array(best_within(frontier, cost).thresholds))
    return HeldOut(left, correct)
