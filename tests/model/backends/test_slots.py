import pytest

from msmlp.model.backends.slots import SlotPool
from msmlp.model.errors import DeviceError


def test_slots_are_given_back_when_what_is_done_with_them_fails() -> None:
    """As when a device has no memory left for the images that were to stand there."""
    pool = SlotPool(4)
    with pytest.raises(MemoryError), pool.taking(3):
        raise MemoryError
    assert sorted(pool.take(4).tolist()) == [0, 1, 2, 3]


def test_slots_stay_taken_when_it_works() -> None:
    pool = SlotPool(4)
    with pool.taking(3) as slots:
        assert len(slots) == 3
    with pytest.raises(DeviceError):
        pool.take(2)
    pool.give(slots)
    assert len(pool.take(4)) == 4
