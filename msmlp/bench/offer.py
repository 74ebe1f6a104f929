"""What is offered to a service: Poisson arrivals of mixed requests, all drawn beforehand. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.model.weights import OperatingPoint

SIZES = (1, 2, 4, 8, 16, 32, 64)
MEAN_SIZE = sum(SIZES) / len(SIZES)


@dataclass(frozen=True)
class Offer:
    """R requests: when each is `due` (seconds from the start, ascending), its `sizes`, and which one of the `points`.

    A request's images begin at `first`, one of as many places as there are images.
    """

    due: NDArray[np.float64]
    sizes: NDArray[np.int64]
    points: NDArray[np.int64]
    first: NDArray[np.int64]


def draw(rng: np.random.Generator, images_per_second: float, seconds: float, points: int, images: int) -> Offer:
    """Requests for `seconds`: exponential gaps, sizes from SIZES and operating points with equal chances."""
    rate = images_per_second / MEAN_SIZE
    gaps = rng.exponential(1 / rate, size=int(2 * rate * seconds) + 64)
    due = np.cumsum(gaps) - gaps[0]
    due = due[due < seconds]
    count = len(due)
    return Offer(due, rng.choice(SIZES, count), rng.integers(0, points, count), rng.integers(0, images, count))


def named_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The operating points people ask for by name: all but the numbered ones between."""
    return [point for point in points if not re.fullmatch(r"p\d+", point.name)]


def named_point(points: Sequence[OperatingPoint], name: str) -> OperatingPoint:
    """The point that `--policy` names.

    Raises:
        OptionError: there is none.
    """
    found = {point.name: point for point in points}
    if name not in found:
        raise OptionError("--policy", f"{name!r} is no operating point; there are {', '.join(found)}")
    return found[name]
