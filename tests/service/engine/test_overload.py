"""Admission and brown-out together, on a clock of the test."""

from dataclasses import replace

import pytest

from msmlp.service.engine.brownout import LEVELS
from msmlp.service.engine.messages import Counts, Load
from msmlp.service.engine.overload import FROZEN_SECONDS, UPDATE_SECONDS, Overload
from msmlp.service.errors import OverloadedError

COSTS = (4.0, *(1.0,) * LEVELS)


def overload(max_wait: float = 2.0, brownout: float = 0.5) -> Overload:
    made = Overload(max_wait, brownout, COSTS)
    made.admission.permits = 100
    return made


def waiting(seconds: float, since: float = float("inf")) -> Load:
    """A device with so much to do, whose oldest image has waited `since` then."""
    return replace(Load.none(3), backlog_seconds=seconds, oldest=(since, float("inf"), float("inf")))


def test_a_long_predicted_wait_is_browned_out_and_a_longer_one_refused() -> None:
    made = overload()
    made.admit(1, waiting(0.1), 0.0, float)
    assert made.level(waiting(0.1)) == 0
    made.admit(1, waiting(1.0), 1.0, float)
    assert made.level(waiting(1.0)) > 0
    with pytest.raises(OverloadedError, match="the predicted wait is 3000 ms"):
        made.admit(1, waiting(3.0), 2.0, float)


def test_who_finds_nobody_waits_for_nobody() -> None:
    made = overload()
    with made.admit(1, waiting(1.0), 1.0, float):
        assert made.level(waiting(1.0)) > 0
    assert made.level(waiting(1.0)) == 0
    assert made.level(replace(waiting(1.0), others=Counts(inflight=1))) > 0
    assert made.level(None) == 0


def test_the_oldest_image_and_the_decoders_count_as_waiting() -> None:
    for load, decoding in ((waiting(0, since=0.0), 0.0), (waiting(0), 1.5)):
        made = overload()
        made.admit(1, Load.none(3), 0.0, float)
        made.look(load, 0.9, lambda decoding=decoding: decoding)  # type: ignore[misc]
        assert made.brownout.level > 0


def test_a_wait_during_which_the_process_was_stopped_does_not_count() -> None:
    made = overload()
    made.admit(1, Load.none(3), 0.0, float)
    made.look(waiting(0, since=0.0), 2 * FROZEN_SECONDS, float)
    assert made.brownout.level == 0


def test_while_most_permits_are_free_it_is_not_updated_at_every_request() -> None:
    made = overload()
    made.admit(1, Load.none(3), 0.0, float)
    made.admit(1, waiting(1.5), UPDATE_SECONDS / 2, float)
    assert made.brownout.level == 0
    made.admit(1, waiting(1.5), 1.5 * UPDATE_SECONDS, float)
    assert made.brownout.level > 0


def test_a_look_opens_the_door_again() -> None:
    made = overload()
    door = made.admission.door
    door.work, door.shut = 1.0, float("inf")
    made.look(waiting(1.99), 0.0, float)
    assert door.closed(0.0)
    made.look(None, 0.1, float)
    assert not door.closed(0.1)
