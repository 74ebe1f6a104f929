"""Risk control: the boldest thresholds that are certified to lose little against always running the last exit.

An image is *lost* when the last exit is right and the exit taken is wrong. The risk of thresholds is the share of all
images, seen and unseen, that they lose; it is an upper bound of the accuracy that they cost. Fixed-sequence testing
(Angelopoulos et al., "Learn then Test", 2021; for early exit: Jazbec et al., "Fast yet Safe", arXiv 2405.20915):
thresholds are tested from the most cautious to the boldest, each with a p-value for "the risk is above the limit",
until one is not certified. Only the first false step counts, so all of them together err as seldom as one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.solvers import Table, Thresholds, joint_frontier, thinned
from msmlp.model.errors import OptionError
from msmlp.model.exits.rule import exit_of

CONFIDENCE = 0.95


SMALLEST = 1e-9


@dataclass(frozen=True)
class RiskLimit:
    """At most `risk` with probability `confidence`, both in (0, 1)."""

    risk: float
    confidence: float

    @property
    def name(self) -> str:
        """The operating point's."""
        return f"risk-{self.risk:g}"

    @property
    def fewest_images(self) -> int:
        """So many images are needed to certify anything, even when none of them is lost."""
        return math.ceil(math.log1p(-self.confidence) / math.log1p(-self.risk))


def risk_limit(risk: float | None, confidence: float | None) -> RiskLimit | None:
    """What `--risk` and `--confidence` ask for, if anything; OptionError outside (0, 1)."""
    if risk is None:
        if confidence is not None:
            raise OptionError("--confidence", "is of no use alone; give --risk too")
        return None
    limit = RiskLimit(risk, CONFIDENCE if confidence is None else confidence)
    for option, value in (("--risk", limit.risk), ("--confidence", limit.confidence)):
        # Nearer to 0 nothing can be certified with images that fit any machine, and logarithms overflow.
        if 0 < value < SMALLEST:
            raise OptionError(option, f"{value:g} is too small; allowed: {SMALLEST:g} or more, and below 1")
        if not 0 < value < 1:
            raise OptionError(option, f"{value:g} is out of range; allowed: above 0 and below 1")
    return limit


def risk_controlled(table: Table, halves: NDArray[np.int64], limit: RiskLimit) -> Thresholds:
    """The boldest thresholds certified on images that had no say in the thresholds tried.

    The guarantee: with probability at least `limit.confidence` over the draw of the images, the expected loss of the
    thresholds returned on a further image is at most `limit.risk`. It needs images drawn independently of each other,
    from where the further ones come from, and `table.scores` that owe nothing to the labels of half 1. Images held out
    by class, as training does, only make the losses vary less.

    The thresholds tried are the joint frontier of cost and loss on half 0, from no loss to the cheapest.

    Args:
        table: N images.
        halves: 0 chooses the thresholds to try, 1 tests them [N]; half 0 is not empty.
        limit: what to certify.

    Returns:
        Thresholds [K - 1]; those of never leaving early, which loses nothing, when no others can be certified.
    """
    lost = table.correct[:, -1:] & ~table.correct
    choosing = Table(table.scores, ~lost, table.costs).take(halves == 0)
    path = [setting.thresholds for setting in reversed(thinned(joint_frontier(choosing)))]
    scores, lost = table.scores[halves == 1], lost[halves == 1]
    counts = [int(np.take_along_axis(lost, exit_of(scores, np.array(t))[:, None] - 1, axis=1).sum()) for t in path]
    never = (1.0,) * (table.exits - 1)
    return [never, *path][safe_prefix(counts, len(lost), limit)]


def safe_prefix(lost: Sequence[int], images: int, limit: RiskLimit) -> int:
    """How many settings in a row from the first one are certified, given how many of the same `images` each loses."""
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
