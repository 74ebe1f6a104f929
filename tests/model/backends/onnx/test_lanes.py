import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.backends.onnx.cpu import FEW, LARGE, SMALL, Crew, part_of


@given(st.integers(1, 5000), st.integers(1, 64))
def test_parts_are_small_and_no_smaller_than_they_need_be(bucket: int, threads: int) -> None:
    part = part_of(bucket, threads)
    assert min(bucket, SMALL) <= part <= LARGE
    if part < LARGE:
        assert bucket <= SMALL * max(FEW, threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_is_done_once(threads: int) -> None:
    done: list[int] = []
    Crew(threads).run(done.append, 20)
    assert sorted(done) == list(range(20))


def test_parts_run_beside_each_other() -> None:
    """Each waits for the other, which one thread alone could not do."""
    meeting, met = threading.Barrier(2, timeout=60), set[int]()

    def work(_: int) -> None:
        met.add(meeting.wait())

    Crew(2).run(work, 2)
    assert met == {0, 1}


@pytest.mark.parametrize("threads", [1, 3])
def test_what_fails_is_raised_when_all_have_ended(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 2:
            raise MemoryError("part 2")
        done.append(number)

    crew = Crew(threads)
    with pytest.raises(MemoryError, match="part 2"):
        crew.run(work, 4)
    crew.run(done.append, 1)
    assert done[-1] == 0
