"""Histograms that take many observations at once; what Prometheus reads is as the library's own writes it."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import add
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Histograms(Collector):
    """One histogram for every value of a label, all there from the start; `bounds` are upper edges, inf not named.

    The library's own takes one observation a call, which for requests of many images costs more than their JSON.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        values: Sequence[object],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._values = [str(value) for value in values]
        self._bounds = tuple(bounds)
        self._edges = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        self._counts = [[0] * len(self._edges) for _ in values]
        self._sums = [0.0] * len(values)
        self._lock = Lock()
        registry.register(self)

    def observe(self, rows: Iterable[int], amounts: Iterable[float]) -> None:
        """Each of `amounts` belongs to the label's value of that number in `rows`, where -1 is the last."""
        bounds, counts, sums = self._bounds, self._counts, self._sums
        with self._lock:
            # For one image and for hundreds alike, quicker than numpy, whose calls cost more than a few dozen rounds.
            for row, amount in zip(rows, amounts, strict=True):
                counts[row][bisect_left(bounds, amount)] += 1  # an amount on an edge belongs below it
                sums[row] += amount

    def observe_many(self, rows: NDArray[np.int64], amounts: NDArray[np.floating]) -> None:
        """The same for some hundreds or more: numpy takes no time for each."""
        values, edges = len(self._values), len(self._edges)
        places = np.searchsorted(self._bounds, amounts.astype(np.float64), side="left")
        rows = rows % values
        counts = np.bincount(rows * edges + places, minlength=values * edges).reshape(values, edges).tolist()
        sums = np.bincount(rows, weights=amounts, minlength=values).tolist()
        with self._lock:
            for row, (more, amount) in enumerate(zip(counts, sums, strict=True)):
                self._counts[row] = list(map(add, self._counts[row], more))
                self._sums[row] += amount

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape reads."""
        with self._lock:
            counts, sums = [list(accumulate(row)) for row in self._counts], list(self._sums)
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, below, total in zip(self._values, counts, sums, strict=True):
            family.add_metric([value], buckets=list(zip(self._edges, below, strict=True)), sum_value=total)
        yield family
