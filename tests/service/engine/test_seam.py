from collections.abc import Callable

import pytest

from model.errors import OutOfMemoryError
from service.engine.messages import Died, Inbound, Load, Outbound, Ready, Stop
from service.engine.seam import SHADOW_SLOTS, run
from tests.fakes import FakeBackend, Pixels


class StoppingPort:
    """A façade that wants nothing but the end."""

    def __init__(self) -> None:
        self.said: list[Outbound] = []

    def take(self, *, block: bool) -> list[Inbound]:
        return [Stop()] if block else []

    def taken(self, message: Inbound) -> None:
        pass

    def send(self, messages: list[Outbound]) -> None:
        self.said += messages

    def publish(self, load: Load) -> None:
        pass


def said_by(backend: FakeBackend, capacity: int | None, shadow_every: int) -> list[Outbound]:
    port = StoppingPort()
    run(lambda: backend, port, capacity=capacity, shadow_every=shadow_every)
    return port.said


@pytest.mark.parametrize(
    ("capacity", "shadow_every", "said"),
    [
        (None, 0, 100),
        (None, 100, 100 - SHADOW_SLOTS),
        (70, 0, 70),
        (70, 100, 70),
        (120, 0, 100),
    ],
)
def test_ready_says_how_many_images_may_be_in_flight(capacity: int | None, shadow_every: int, said: int) -> None:
    ready, _died = said_by(FakeBackend(capacity=100), capacity, shadow_every)
    assert ready == Ready("fake", "none", said)


def failing_above(images: int) -> Callable[[int, Pixels], None]:
    def fail(stage: int, pixels: Pixels) -> None:
        if len(pixels) > images:
            raise OutOfMemoryError("no room")

    return fail


def test_an_engine_whose_largest_batches_do_not_fit_serves_with_smaller_ones() -> None:
    backend = FakeBackend(max_batch=64)
    backend.fail = failing_above(8)
    ready, _died = said_by(backend, 200, 0)
    assert isinstance(ready, Ready)
    assert backend.buckets == (1, 2, 4, 8)


def test_one_for_which_nothing_fits_never_is_ready() -> None:
    backend = FakeBackend()
    backend.fail = failing_above(0)
    (died,) = said_by(backend, 200, 0)
    assert isinstance(died, Died)
    assert died.detail == "no room on none for a batch of 1: no room"
