"""Histograms against the library's own, line by line."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from msmlp.service.telemetry.metrics import LabelledHistogram

BOUNDS = (0.05, 0.5, 1.0, 20.0)
VALUES = (1, 2, "none")


def both() -> tuple[LabelledHistogram, CollectorRegistry, Histogram, CollectorRegistry]:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    ours = LabelledHistogram("some_seconds", "Some.", "exit", VALUES, bounds=BOUNDS, registry=mine)
    library = Histogram("some_seconds", "Some.", ["exit"], buckets=BOUNDS, registry=theirs)
    for value in VALUES:
        library.labels(value)
    return ours, mine, library, theirs


def test_before_any_observation_every_count_is_zero() -> None:
    _, mine, _, theirs = both()
    assert generate_latest(mine) == generate_latest(theirs)
    assert b'some_seconds_bucket{exit="none",le="+Inf"} 0.0' in generate_latest(mine)


# Quarters and edges: sums are exact, whatever the order.
amounts = st.sampled_from((-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 20.0, 20.25, 1e9))


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), amounts)), max_size=5))
def test_the_text_is_the_librarys(batches: list[list[tuple[int, float]]]) -> None:
    ours, mine, library, theirs = both()
    for batch in batches:
        ours.observe([row for row, _ in batch], [amount for _, amount in batch])
        for row, amount in batch:
            library.labels(VALUES[row]).observe(amount)
    assert generate_latest(mine).splitlines() == generate_latest(theirs).splitlines()


@given(st.lists(st.lists(st.tuples(st.integers(-1, 2), amounts)), max_size=5))
def test_many_are_counted_as_each(batches: list[list[tuple[int, float]]]) -> None:
    ours, mine, _, _ = both()
    others, theirs, _, _ = both()
    for batch in batches:
        rows, observed = [row for row, _ in batch], [amount for _, amount in batch]
        ours.observe_many(np.array(rows, dtype=np.int64), np.array(observed))
        others.observe(rows, observed)
    assert generate_latest(mine) == generate_latest(theirs)


def test_minus_one_is_the_last_value() -> None:
    ours, mine, _, _ = both()
    ours.observe([-1], [0.25])
    assert mine.get_sample_value("some_seconds_count", {"exit": "none"}) == 1
    assert mine.get_sample_value("some_seconds_sum", {"exit": "none"}) == 0.25
