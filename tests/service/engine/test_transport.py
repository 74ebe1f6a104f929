"""What holds for the engine as a thread and as a process alike."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from msmlp.model.errors import OutOfMemoryError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.messages import Answers, Cancel, Cancelled, Died, Failed, Inbound, Load, Outbound, Ready, Stop
from msmlp.service.engine.transport import SHADOW_SLOTS, run
from tests.engines import BROKEN, Build, Talk, no_device, process, thread
from tests.fakes import PATIENCE_SECONDS, FakeBackend, Pixels, picture, pictures

MAKERS = {"thread": thread, "process": process}


@pytest.fixture(scope="module", params=MAKERS)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[Talk, Build]]:
    """One of each for all tests here: the process has 12 places for pixels on their way, fewer than the tests send."""
    build = Build(capacity=64)
    more = {"places": 12} if request.param == "process" else {}
    talk = Talk(MAKERS[request.param], build, capacity=64, **more)
    ready = talk.hear(Ready)
    assert (ready.backend, ready.capacity) == ("fake", 64)
    assert talk.worker.ready.is_set()
    yield talk, build
    talk.worker.put(Stop())
    talk.worker.join(PATIENCE_SECONDS)
    assert talk.hear(Died) == Died("stopped")
    assert not talk.worker.ready.is_set()
    assert talk.worker.load is None


def test_an_answer_says_where_why_and_what_every_stage_said(engine: tuple[Talk, Build]) -> None:
    talk, _ = engine
    talk.submit(7, np.stack([picture(1.0, label=2), picture(0.2, 0.8, label=3), picture(0.2, 0.2, 0.4, label=1)]))
    for index, (exit, reason, label) in enumerate(
        [(1, Reason.CONFIDENT, 2), (2, Reason.CONFIDENT, 3), (3, Reason.FINAL, 1)]
    ):
        answer = talk.hear(Answers)
        assert (answer.request.tolist(), answer.index.tolist()) == ([7], [index])
        assert (answer.exit[0], answer.reason[0]) == (exit, reason)
        assert answer.probabilities[0].argmax() == answer.history.class_id[0, exit - 1] == label
    assert answer.history.score[0].tolist() == pytest.approx([0.2, 0.2, 0.4])
    assert answer.history.batch_size[0].tolist() == [3, 2, 1]


def test_who_waits_together_leaves_together(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        for request in range(10):
            talk.submit(request, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [-1]
    assert talk.hear(Answers).request.tolist() == list(range(10))


def test_pixels_are_those_of_their_request_when_the_places_are_used_again_and_again(engine: tuple[Talk, Build]) -> None:
    talk, _ = engine
    sizes, labels = [5, 12, 1, 7, 12, 3, 10, 8], [0, 1, 0, 1, 1, 0, 0, 1]
    for request, (images, label) in enumerate(zip(sizes, labels, strict=True)):
        talk.submit(request, pictures(images, 0.6 + 0.04 * request, label=label))
    seen: dict[int, int] = dict.fromkeys(range(len(sizes)), 0)
    while seen != dict(enumerate(sizes)):
        answer = talk.hear(Answers)
        for row, request in enumerate(answer.request.tolist()):
            seen[request] += 1
            assert answer.history.score[row, 0] == pytest.approx(0.6 + 0.04 * request, abs=0.002)
            assert answer.probabilities[row].argmax() == labels[request]


def test_a_cancelled_request_is_not_run(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(5, 1.0))
        talk.submit(2, pictures(2, 1.0))
        talk.worker.put(Cancel(1))
    assert talk.hear(Cancelled) == Cancelled("queue", 5)
    assert talk.hear(Answers).request.tolist() == [2, 2]


def test_a_failed_batch_fails_its_requests_and_says_no_secret(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(2, 1.0))
        talk.submit(2, pictures(1, 1.0, label=BROKEN))
    failed = talk.hear(Failed)
    assert failed.requests.tolist() == [1, 2]
    assert "secret" not in failed.detail
    talk.submit(3, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [3]


def test_gauges_see_who_came_while_the_device_was_busy(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(12, 1.0))
        talk.submit(2, pictures(3, 1.0))
        load = talk.worker.load
        assert load is not None
        assert list(load.queued) == [15, 0, 0]
        assert list(load.oldest) == [1.0, np.inf, np.inf]
    while 2 not in talk.hear(Answers).request:
        pass
    load = talk.worker.load
    assert load is not None
    assert list(load.queued) == [0, 0, 0]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_only_the_caller_can_mend_is_the_end(make: type) -> None:
    talk = Talk(make, no_device, capacity=8)
    assert talk.hear(Died) == Died("device: cuda is not available here")
    talk.worker.join(PATIENCE_SECONDS)
    assert talk.worker.load is None


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
    backend = FakeBackend(max_batch=64, every_bucket=True)
    backend.fail = failing_above(8)
    ready, _died = said_by(backend, 200, 0)
    assert isinstance(ready, Ready)
    assert backend.buckets == (1, 2, 4, 8)


def test_one_for_which_nothing_fits_never_is_ready() -> None:
    backend = FakeBackend(every_bucket=True)
    backend.fail = failing_above(0)
    (died,) = said_by(backend, 200, 0)
    assert isinstance(died, Died)
    assert died.detail == "no room on none for a batch of 1: no room"
