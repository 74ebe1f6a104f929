"""A request's images land in any order, in any number of messages, and come out in the request's."""

import asyncio

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.admission import Admission
from msmlp.service.engine.messages import HISTORY, Answers, ExitParameters, Load
from msmlp.service.engine.result import Pending, Result

STAGES, CLASSES = 3, 4


def answers(index: list[int], reason: Reason = Reason.CONFIDENT) -> Answers:
    """Rows whose every column tells which image they are of."""
    rows = np.array(index)
    history = np.zeros((len(rows), STAGES), dtype=HISTORY)
    for i, name in enumerate(HISTORY.names):
        history[name] = rows[:, None] + i
    return Answers(
        request=np.zeros(len(rows), dtype=np.int64),
        index=rows,
        exit=rows % STAGES + 1,
        reason=np.full(len(rows), reason, dtype=np.int8),
        probabilities=np.repeat(rows[:, None], CLASSES, axis=1).astype(np.float32),
        history=history,
    )


def landed(index: list[int], now: float, reason: Reason = Reason.CONFIDENT) -> Result:
    return Result.of(answers(index, reason), now)


def submitted(images: int, *, stream: bool = False) -> tuple[Admission, Pending]:
    """A request in an engine."""
    admission = Admission(0)
    admission.permits = admission.inside = images
    parameters = ExitParameters(np.full(STAGES - 1, 0.5), 0, STAGES, stream=stream)
    return admission, Pending(images, admission.admit(images, Load.none(STAGES)), parameters)


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[int]]:
    """All images of a request, in the messages they come with."""
    order = draw(st.permutations(range(draw(st.integers(1, 12)))))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
    return [part for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True) if (part := order[a:b])]


@given(arrivals())
@example([[], [1], [0]])
def test_whatever_way_they_land_they_come_out_in_order(parts: list[list[int]]) -> None:
    whole = Result.joined([landed(part, float(number)) for number, part in enumerate(parts)])
    images = sum(map(len, parts))
    wanted = answers(list(range(images)))
    assert whole.index.tolist() == list(range(images))
    for name in ("exit", "reason", "probabilities"):
        assert (getattr(whole, name) == getattr(wanted, name)).all()
    for name in HISTORY.names:
        assert (whole.history[name] == wanted.history[name]).all()
    came = {image: number for number, part in enumerate(parts) for image in part}
    assert whole.landed.tolist() == [came[image] for image in range(images)]


def test_a_request_is_done_when_its_last_image_has_left_and_each_is_counted_once() -> None:
    async def main() -> None:
        admission, pending = submitted(3)
        pending.land(landed([2, 0], 1.0))
        assert not pending.done.done()
        assert pending.missing == admission.inflight == 1
        pending.land(landed([1], 2.0))
        assert (await pending.done).index.tolist() == [0, 1, 2]
        assert admission.inflight == admission.inside == 0

    asyncio.run(main())


def test_in_a_stream_an_image_that_goes_on_has_not_left() -> None:
    async def main() -> None:
        admission, pending = submitted(2, stream=True)
        pending.land(landed([0, 1], 1.0, Reason.GOES_ON))
        assert admission.inflight == 2
        pending.land(landed([1, 0], 2.0))
        assert pending.landings is not None
        lines = [pending.landings.get_nowait() for _ in range(3)]
        assert [line.index.tolist() for line in lines[:2] if line] == [[0, 1], [1, 0]]
        assert lines[2] is None, "which ends it"
        assert admission.inflight == 0
        assert (await pending.done).landed.tolist() == [2.0, 2.0]

    asyncio.run(main())


def test_what_fails_later_takes_nothing_back() -> None:
    async def main() -> None:
        _, pending = submitted(2, stream=True)
        pending.land(landed([1], 1.0))
        pending.fail(ValueError("gone"))
        assert pending.landings is not None
        first = pending.landings.get_nowait()
        assert first is not None
        assert first.index.tolist() == [1]
        assert pending.landings.get_nowait() is None
        with pytest.raises(ValueError, match="gone"):
            await pending.done

    asyncio.run(main())
