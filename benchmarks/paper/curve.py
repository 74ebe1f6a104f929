"""The cascade between its exits: Algorithm 1's weight sets, and thresholds for a cost or an accuracy.

Thresholds come from validation images alone.
"""

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.measure import Result
from msmlp.model.calibration.solvers import ALWAYS, NEVER, SOLVERS, Thresholds, ThresholdSetting, joint_frontier, pareto
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.calibration import Table

Floats = NDArray[np.float64]

SETS, LARGEST = 40, 20.0
PAPER, CORRECTED = "algorithm-1", "survivor-conditional"


def weight_sets(exits: int) -> list[Floats]:
    """Our rule for the paper's 40 weight sets: exit k has a share in proportion to q^k, with 40 values of q from 1/20
    to 20, each the same multiple of the one before.

    MSDNet (the paper's reference 24) has such sets with other q. Nearly all images leave at the first exit with the
    first set, and at the last exit with the last one.
    """
    powers = np.geomspace(1 / LARGEST, LARGEST, SETS)[:, None] ** np.arange(1, exits + 1)
    return list(powers / powers.sum(axis=1, keepdims=True))


def thresholds_of_sets(solver: str, validation: Table) -> list[Thresholds]:
    """The thresholds of every weight set, in order."""
    return [tuple(SOLVERS[solver](validation.scores, each).tolist()) for each in weight_sets(validation.exits)]


def even_thresholds(validation: Table) -> Thresholds:
    """Those of Algorithm 1 for the weight set whose shares are nearest to equal."""
    nearest = int(np.argmin([np.ptp(each) for each in weight_sets(validation.exits)]))
    return thresholds_of_sets(PAPER, validation)[nearest]


def at_cost(result: Result, costs: list[float], cost: float) -> Floats:
    """How right the cascade is about each test image [N], 0 to 1, at a mean `cost` on the test images.

    Of the weight sets (Algorithm 1), and of all images to the first or the last exit, it keeps those that no other
    beats on the validation images, and mixes the two neighbours of `cost` in the proportion that costs just that.
    Beyond the ends of this curve it takes the end.
    """
    validation, test = result.validation.table(costs), result.test.table(costs)
    ends = [(limit,) * (validation.exits - 1) for limit in (ALWAYS, NEVER)]
    tried = [(each, validation.expect(each)) for each in [*thresholds_of_sets(PAPER, validation), *ends]]
    settings = pareto(ThresholdSetting(reached.mean_cost, reached.accuracy, each) for each, reached in tried)
    left = [exit_of(test.scores, np.array(setting.thresholds)) for setting in settings]
    left.sort(key=lambda exits: test.expect_at(exits).mean_cost)
    place = float(np.interp(cost, [test.expect_at(exits).mean_cost for exits in left], range(len(left))))
    below, share = int(place), place % 1
    right = [test.correct[range(len(exits)), exits - 1].astype(float) for exits in (left[below : below + 2] * 2)[:2]]
    mixed: Floats = (1 - share) * right[0] + share * right[1]
    return mixed


def reaching(validation: Table, accuracy: float) -> ThresholdSetting:
    """The cheapest setting of the joint search with at least this accuracy on the validation images, else the most
    accurate one."""
    frontier = joint_frontier(validation)
    return next((setting for setting in frontier if setting.accuracy >= accuracy), frontier[-1])
