"""When a call is tried again, without a network or a clock."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.client.answer import ServiceError
from msmlp.client.transport import FIRST_WAIT, LONGEST_WAIT, Attempts

REFUSED = ServiceError("no answer", code="unreachable")


def waits(retries: int, chance: float, *errors: ServiceError, timeout: float = 1e9) -> list[float]:
    """The waits after errors, until one is final; sleeping is replaced, so the test does not wait."""
    attempts = Attempts(retries, timeout, clock=lambda: 0.0, chance=lambda: chance)
    waited: list[float] = []
    with contextlib.suppress(ServiceError):
        waited.extend(attempts.wait_after(error) for error in errors)
    return waited


@given(st.integers(0, 12), st.floats(0, 1, exclude_max=True))
def test_waits_double_up_to_the_longest_and_chance_only_shortens_them(retries: int, chance: float) -> None:
    waited = waits(retries, chance, *[REFUSED] * 20)
    assert len(waited) == retries
    for number, wait in enumerate(waited):
        most = min(LONGEST_WAIT, FIRST_WAIT * 2**number)
        assert most / 2 <= wait <= most


def test_chance_spreads_callers() -> None:
    assert waits(3, 0.1, *[REFUSED] * 3) != waits(3, 0.9, *[REFUSED] * 3)


@pytest.mark.parametrize("status", [429, 503])
def test_the_services_wish_is_the_wait(status: int) -> None:
    shed = ServiceError("full", status=status, retry_after=7)
    assert waits(5, 0.5, shed, shed) == [7, 7]
    assert waits(5, 0.5, shed, timeout=7) == []


@pytest.mark.parametrize("status", [None, 400, 413, 422, 500, 502, 504])
def test_nothing_else_is_tried_again(status: int | None) -> None:
    assert waits(5, 0.5, ServiceError("no", status=status, code="timeout", retry_after=1)) == []


def test_time_that_is_left_shrinks_and_is_never_nothing() -> None:
    now = [0.0]
    attempts = Attempts(3, 10, clock=lambda: now[0])
    assert attempts.left == 10
    now[0] = 4
    assert attempts.left == 6
    now[0] = 11
    assert 0 < attempts.left < 0.01  # for httpx, 0 would be an error of its own
