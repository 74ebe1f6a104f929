"""Cross-fitting: the best of many thousands of settings is optimistic on the images it was chosen on."""

import numpy as np
from numpy.typing import NDArray

from model.calibration.joint import joint_frontier
from model.calibration.settings import Setting, Table, best_within
from model.exits import exit_of

FOLDS = 5


def folds_of(identities: NDArray[np.uint8], folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold 0...folds-1 for images named by the hashes of their pixels [N, 32].

    The images alone decide, so every layout of a data set gives the same folds; equal images share one.
    """
    _, rank = np.unique(identities, axis=0, return_inverse=True)
    return np.asarray(rank.reshape(-1) % folds, dtype=np.int64)


def held_out_exits(table: Table, settings: list[Setting], folds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where images leave when their thresholds were chosen without them.

    For each fold and each setting, the frontier of the other folds gives the thresholds for the setting's cost.

    Returns:
        1...K, [settings, N]. With one fold alone there is nothing to hold out, and the settings' own thresholds serve.
    """
    left = np.stack([exit_of(table.scores, np.array(s.thresholds)) for s in settings])
    for fold in np.unique(folds):
        held = folds == fold
        if held.all():
            break
        others = joint_frontier(table.take(~held))
        for row, setting in zip(left, settings, strict=True):
            row[held] = exit_of(table.scores[held], np.array(best_within(others, setting.cost).thresholds))
    return left
