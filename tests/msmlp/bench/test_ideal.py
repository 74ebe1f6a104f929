"""The ideal server: by hand, and against the rules its head states, for any arrivals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msmlp.bench.costs import StageCosts
from msmlp.bench.ideal import ideal_latencies

Exits = NDArray[np.int64]
COSTS = StageCosts((1, 2, 4), np.array([[1.0, 1.5, 2.0], [1.0, 2.0, 4.0]]))


def exits(*values: int) -> Exits:
    return np.array(values, dtype=np.int64)


def latencies(arrivals: list[float], *requests: Exits) -> list[list[float]]:
    return [part.tolist() for part in ideal_latencies(arrivals, requests, COSTS)]


def test_a_request_alone_takes_its_stages_and_each_image_leaves_at_its_own() -> None:
    assert latencies([5.0], exits(1, 2, 1)) == [[2.0, 3.0, 2.0]]


def test_who_comes_while_it_runs_waits_for_the_end_and_goes_with_the_others() -> None:
    # The first runs from 0 to 2. At 2 both others are there: two images, one of which goes on.
    assert latencies([0.0, 1.0, 1.5], exits(2), exits(1), exits(2)) == [[2.0], [2.5], [3.0]]


def test_requests_are_not_torn_apart() -> None:
    # At 1 three images and two more do not fit a batch of four: the latter go after the former.
    assert latencies([0.0, 0.5, 0.6], exits(1), exits(1, 1, 1), exits(1, 1)) == [[1.0], [2.5] * 3, [3.9] * 2]


def test_a_request_larger_than_the_largest_batch_goes_in_several() -> None:
    assert latencies([0.0], exits(*[1] * 9)) == [[5.0] * 9]


def test_nobody_comes() -> None:
    assert ideal_latencies([], [], COSTS) == []


gaps = st.floats(0, 5).map(lambda gap: round(gap, 3))
images = st.lists(st.integers(1, 2), min_size=1, max_size=6).map(lambda values: exits(*values))
requests = st.lists(st.tuples(gaps, images), min_size=1, max_size=20)


# Without padding and with something gained by company, so that to go together is never slower.
LINEAR = StageCosts(tuple(range(1, 9)), 1.0 + np.array([0.5, 1.0])[:, None] * np.arange(1, 9))


@given(requests)
def test_nobody_is_sooner_than_alone_and_together_no_later_than_one_by_one(
    offered: list[tuple[float, Exits]],
) -> None:
    arrivals = np.cumsum([gap for gap, _ in offered]).tolist()
    parts = [part for _, part in offered]
    found = ideal_latencies(arrivals, parts, LINEAR)
    free = 0.0
    for arrival, part, latency in zip(arrivals, parts, found, strict=True):
        alone = [LINEAR.stage_seconds(k, int((part > k).sum())) for k in range(part.max())]
        assert (latency >= np.cumsum(alone)[part - 1] - 1e-9).all()
        free = max(free, arrival) + sum(alone)
    assert max(arrival + part.max() for arrival, part in zip(arrivals, found, strict=True)) <= free + 1e-9


@given(requests)
def test_who_comes_first_is_not_answered_after_who_comes_later_and_goes_as_far(
    offered: list[tuple[float, Exits]],
) -> None:
    arrivals = np.cumsum([gap for gap, _ in offered]).tolist()
    parts = [part for _, part in offered]
    found = ideal_latencies(arrivals, parts, COSTS)
    for exit in (1, 2):
        landed = [
            arrival + latency[part == exit].max()
            for arrival, part, latency in zip(arrivals, parts, found, strict=True)
            if (part == exit).any()
        ]
        assert landed == pytest.approx(sorted(landed))


@given(requests)
def test_later_requests_do_not_change_who_had_started_before(offered: list[tuple[float, Exits]]) -> None:
    arrivals = np.cumsum([gap for gap, _ in offered]).tolist()
    parts = [part for _, part in offered]
    fewer = ideal_latencies(arrivals[:-1], parts[:-1], COSTS)
    for arrival, part, before in zip(arrivals, ideal_latencies(arrivals, parts, COSTS), fewer, strict=False):
        if arrival + before.max() <= arrivals[-1]:
            assert part.tolist() == pytest.approx(before.tolist())
