"""The paper's claims as differences of accuracies, with their standard errors over images and seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told from these images and seeds"

Right = NDArray[np.float64] | NDArray[np.bool_]
"""How right the answer about each image is [N]."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds; `by_seed` are the seeds' own."""

    mean: float
    of_images: float
    """The standard error from the images, for these seeds."""
    by_seed: tuple[float, ...]
    images: int

    @property
    def of_seeds(self) -> float:
        """The standard error from the spread of seeds; 0 with one seed, which cannot tell."""
        seeds = len(self.by_seed)
        return float(np.std(self.by_seed, ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0

    @property
    def error(self) -> float:
        """Of both. What an image does with one seed alone is in each of them, so it is rather too large."""
        return math.hypot(self.of_images, self.of_seeds)

    @property
    def interval(self) -> float:
        """Half of the 95 % interval, with Satterthwaite's degrees of freedom: few seeds tell little of a spread."""
        seeds = len(self.by_seed)
        freedom = (seeds - 1) * (self.error / self.of_seeds) ** 4 if self.of_seeds else math.inf
        return self.error * float(stats.t.ppf(0.975, freedom))

    @property
    def verdict(self) -> str:
        """On the claim that the mean is above 0."""
        if abs(self.mean) <= self.interval:
            return UNKNOWN
        return HOLDS if self.mean > 0 else FAILS


def estimate(values: Sequence[Right]) -> Estimate:
    """The mean of one number per image, [N] for each seed; the images must be the same."""
    rows = np.asarray(values, dtype=np.float64)
    per_image = rows.mean(axis=0)
    error = float(per_image.std(ddof=1)) / math.sqrt(len(per_image))
    return Estimate(float(rows.mean()), error, tuple(rows.mean(axis=1).tolist()), len(per_image))


def difference(ours: Sequence[Right], theirs: Sequence[Right]) -> Estimate:
    """Ours minus theirs, image by image and seed by seed."""
    return estimate([a.astype(np.float64) - b for a, b in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class Claim:
    """That the cascade `all` is more accurate than `theirs`: at exit `exit` (1...K), or with None at equal cost."""

    text: str
    theirs: str
    exit: int | None = None
    folded: bool = False


CLAIMS = (
    Claim("Reuse helps exit 2", "none", 2),
    Claim("Reuse helps exit 3", "none", 3),
    Claim("Reuse in all blocks is better than in the first, at exit 3", "first", 3),
    Claim("The LN in f helps exit 3", "no-norm", 3),
    Claim("The cascade beats the Mixer with patch 4 at equal GFLOPs, counted as in the paper", "mixer-4"),
    Claim("The same, counted as served", "mixer-4", folded=True),
)
