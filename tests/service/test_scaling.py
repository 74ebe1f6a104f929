"""How many replicas a load needs, and the list of their addresses; without Ray."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.scaling import BUSY, BUSY_SHARE, FITS, KEPT_SECONDS, WAIT, Addresses, Policy, Report, wanted

TARGET = 0.25

shares = st.floats(0, 1)
waits = st.floats(0, 10)
reports = st.lists(st.none() | st.builds(Report, waits, shares), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([Report(0.0, 0.5)], 1),
        ([Report(0.0, 0.85)], 2),  # busy
        ([Report(0.3, 0.3)], 2),  # waiting, whatever holds it up
        ([Report(9.0, 1.0)] * 3, 6),  # twice as many at most
        ([Report(0.0, 0.81)] * 8, 9),  # in proportion
        ([Report(0.0, 0.1)] * 4, 1),
        ([Report(0.0, 0.5)] * 4, 4),  # three would be busy for 0.67 of the time
        ([Report(0.0, 0.4)] * 4, 3),
        ([Report(0.1, 0.1)] * 4, 4),  # not while something waits
    ],
)
def test_the_number_follows_wait_and_busy_share(replicas: list[Report | None], expected: int) -> None:
    assert wanted(replicas, len(replicas), TARGET) == expected


def test_replicas_that_have_not_reported_count_as_idle_and_end_nothing() -> None:
    busy, idle = Report(0.4, 1.0), Report(0.0, 0.0)
    assert wanted([busy, None], 2, TARGET) == 2
    assert wanted([idle, None], 2, TARGET) == 2
    assert wanted([None, None], 2, TARGET) == 2
    assert wanted([], 1, TARGET) == 1


def test_a_load_that_has_asked_for_more_does_not_ask_again_while_they_start() -> None:
    assert wanted([Report(1.0, 1.0)] * 2, 4, TARGET) == 4


@given(reports, st.integers(1, 40))
def test_a_step_has_bounds(replicas: list[Report | None], target: int) -> None:
    number = wanted(replicas, target, TARGET)
    assert 1 <= number <= max(target, 2 * len(replicas))


@given(st.lists(st.builds(Report, waits, shares), min_size=1, max_size=20), waits, shares)
def test_more_load_never_wants_fewer(replicas: list[Report], wait: float, busy: float) -> None:
    more = [Report(each.wait + wait, max(each.busy, busy)) for each in replicas]
    assert wanted(more, len(replicas), TARGET) >= wanted(replicas, len(replicas), TARGET)


@given(st.floats(0, 50), st.integers(1, 100))
def test_a_constant_load_leads_to_one_number_that_carries_it(load: float, begin: int) -> None:
    """`load` replicas would be busy all the time with it."""
    numbers = [begin]
    for _ in range(12):
        running = numbers[-1]
        report = Report(0.0 if load < running else 10 * TARGET, min(1.0, load / running))
        numbers.append(wanted([report] * running, running, TARGET))
    steps = [after - before for before, after in pairwise(numbers) if after != before]
    assert sum((a > 0) != (b > 0) for a, b in pairwise(steps)) <= 1, numbers
    assert numbers[-1] == numbers[-2]
    assert load / numbers[-1] <= BUSY
    assert numbers[-1] <= max(begin if not steps else 1, load / FITS + 1)


def test_ray_is_told_what_its_context_says() -> None:
    def number(metrics: Any) -> tuple[int, dict[str, Any]]:
        context = SimpleNamespace(aggregated_metrics=metrics, running_replicas=["a", "b"], target_num_replicas=2)
        return Policy(target_wait=TARGET)(context)

    assert number({WAIT: {"a": 0.3, "b": 0.3}, BUSY_SHARE: {"a": 0.1, "b": 0.1}}) == (3, {})
    assert number({WAIT: {"a": 0.3, "gone": 9.0}, BUSY_SHARE: {"a": 0.1, "gone": 1.0}}) == (2, {})
    assert number(None) == (2, {})


def test_addresses_are_those_of_replicas_that_were_heard_of_lately() -> None:
    now = 0.0
    addresses = Addresses(lambda: now)
    addresses.put("b", "http://b")
    addresses.put("a", "http://a")
    addresses.put("c", "http://c")
    addresses.remove("c")
    addresses.remove("never there")
    assert addresses.all() == ["http://a", "http://b"]
    now = KEPT_SECONDS / 2
    addresses.put("b", "http://b2")
    now = KEPT_SECONDS * 1.2
    assert addresses.all() == ["http://b2"]
