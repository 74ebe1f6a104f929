"""Risk control: the most aggressive thresholds certified to lose little against always running the last exit.

An image is *lost* if the last exit is right and the exit taken is wrong. The risk of thresholds is the share of all
images, seen and unseen, that they lose, an upper bound of the accuracy they cost. Fixed-sequence testing (Angelopoulos
et al., "Learn then Test", 2021; for early exit: Jazbec et al., "Fast yet Safe", arXiv 2405.20915) goes from the most
cautious thresholds to the most aggressive, with a p-value for "the risk is above the limit", until one is not
certified. Only the first false step counts, so the whole sequence errs as rarely as one test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.solvers import Thresholds, joint_frontier, thinned
from msmlp.model.errors import OptionError
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.calibration import Table

CONFIDENCE = 0.95
SMALLEST = 1e-9


@dataclass(frozen=True)
class RiskLimit:
    """At most `risk` with probability `confidence`, both in (0, 1)."""

    risk: float
    confidence: float

    @property
    def name(self) -> str:
        return f"risk-{self.risk:g}"

    @property
    def fewest_images(self) -> int:
        """The images needed to certify anything, even if none of them is lost."""
        return math.ceil(math.log1p(-self.confidence) / math.log1p(-self.risk))


def risk_limit(risk: float | None, confidence: float | None) -> RiskLimit | None:
    """The limit of `--risk` and `--confidence`, if any; OptionError outside (0, 1)."""
    if risk is None:
        if confidence is not None:
            raise OptionError("--confidence", "needs --risk")
        return None
    limit = RiskLimit(risk, CONFIDENCE if confidence is None else confidence)
    for option, value in (("--risk", limit.risk), ("--confidence", limit.confidence)):
        # Closer to 0, no number of images that fits a machine could certify anything, and logarithms overflow.
        if 0 < value < SMALLEST:
            raise OptionError(option, f"{value:g} is too small; expected {SMALLEST:g} or more, and below 1")
        if not 0 < value < 1:
            raise OptionError(option, f"{value:g} is out of range; expected above 0 and below 1")
    return limit


def risk_controlled(table: Table, halves: NDArray[np.int64], limit: RiskLimit) -> Thresholds:
    """The most aggressive thresholds [K - 1] that can be certified; those that never leave early if no others can.

    The thresholds tried are the joint frontier of cost and loss on the images of half 0, from no loss to the cheapest;
    half 1 tests them (`halves` [N], half 0 not empty).

    The guarantee: with probability at least `limit.confidence` over the draw of the images, the expected loss on a
    further image is at most `limit.risk`. It needs images drawn independently, from the source of the further ones, and
    `table.scores` that do not depend on the labels of half 1. Images held out by class, as in training, only make the
    losses vary less.
    """
    lost = table.correct[:, -1:] & ~table.correct
    choosing = Table(table.scores, ~lost, table.costs).take(halves == 0)
    path = [setting.thresholds for setting in reversed(thinned(joint_frontier(choosing)))]
    scores, lost = table.scores[halves == 1], lost[halves == 1]
    counts = [int(np.take_along_axis(lost, exit_of(scores, np.array(t))[:, None] - 1, axis=1).sum()) for t in path]
    never = (1.0,) * (table.exits - 1)
    return [never, *path][safe_prefix(counts, len(lost), limit)]


def safe_prefix(lost: Sequence[int], images: int, limit: RiskLimit) -> int:
    """How many settings from the first are certified, given how many of `images` each loses."""
    for certified, count in enumerate(lost):
        if hoeffding_bentkus(count, images, limit.risk) > 1 - limit.confidence:
            return certified
    return len(lost)


def hoeffding_bentkus(loss: float, images: int, risk: float) -> float:
    """A p-value for "the expected loss is above `risk`", given the sum of `images` independent losses in [0, 1].

    The smaller of Hoeffding's exp(-n KL(mean, risk)) and Bentkus' e P(Binomial(n, risk) <= ceil(sum)), as in
    Bates et al., "Distribution-free, risk-controlling prediction sets", 2021.
    """
    if not images:
        return 1.0
    low = min(loss / images, risk)
    divergence = (low * math.log(low / risk) if low else 0.0) + (1 - low) * math.log((1 - low) / (1 - risk))
    return min(1.0, math.exp(-images * divergence), math.e * binomial_cdf(math.ceil(loss), images, risk))


def binomial_cdf(most: int, trials: int, chance: float) -> float:
    """P(Binomial(trials, chance) <= most) for a chance in (0, 1); terms through logarithms, so that none overflows."""
    if most >= trials:
        return 1.0

    def log_term(k: int) -> float:
        ways = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        return ways + k * math.log(chance) + (trials - k) * math.log1p(-chance)

    return min(1.0, math.fsum(math.exp(log_term(k)) for k in range(most + 1)))
