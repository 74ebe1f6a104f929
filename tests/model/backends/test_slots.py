import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.backends.settings import MAX_CAPACITY, MEMORY_SHARE, BackendSettings
from msmlp.model.backends.slots import SlotPool
from msmlp.model.errors import DeviceError
from msmlp.model.nn.config import preset


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


def test_a_slot_holds_the_image_and_the_features_of_all_stages_but_the_last() -> None:
    # tiny: 32 x 32 images; 4 tokens of 32 channels after stage 1, 16 after stage 2.
    assert preset("tiny").shape.slot_bytes(4) == 3 * 32 * 32 + 4 * (4 * 32 + 16 * 32)
    assert preset("tiny").shape.slot_bytes(2) == 3 * 32 * 32 + 2 * (4 * 32 + 16 * 32)
    assert preset("mixer-s").shape.slot_bytes(4) == 3 * 32 * 32


@given(st.integers(1, 10**7), st.integers(0, 10**12), st.integers(1, 4096), st.integers(0, 64))
def test_slots_take_their_share_and_no_more(bytes_per_slot: int, free: int, max_batch: int, reserve: int) -> None:
    try:
        slots = BackendSettings(max_batch=max_batch, reserve=reserve).slots(bytes_per_slot, lambda: free)
    except DeviceError:
        assert (max_batch + reserve + 1) * bytes_per_slot > MEMORY_SHARE * free - bytes_per_slot
        return
    assert max_batch + reserve <= slots <= MAX_CAPACITY + reserve
    assert (slots + 1) * bytes_per_slot <= MEMORY_SHARE * free
    # One more would not fit, or would only wait.
    assert slots == MAX_CAPACITY + reserve or (slots + 2) * bytes_per_slot > MEMORY_SHARE * free - 1


def test_too_little_memory_says_what_is_needed_and_what_there_is() -> None:
    with pytest.raises(DeviceError) as caught:
        BackendSettings(max_batch=64, reserve=32).slots(2**20, lambda: 200 * 2**20)
    assert str(caught.value) == (
        "96 slots need 97.0 MiB, and slots may take 25 % of the 200.0 MiB free here; "
        "lower --max-batch or set --capacity"
    )


@pytest.mark.parametrize("free", [2**20, 2**40])
def test_backends_that_share_a_device_divide_its_memory_and_the_cap(free: int) -> None:
    whole, part = (BackendSettings(max_batch=8, share=share).slots(100, lambda: free) for share in (1, 4))
    assert part == pytest.approx(whole / 4, abs=1)
