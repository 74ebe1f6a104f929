import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from msmlp.model.backends.protocol import device_errors, warm_up
from msmlp.model.errors import DeviceError, OptionError, OutOfMemoryError
from tests.fakes import FakeBackend, Pixels


def no_room_above(largest: int, stages: tuple[int, ...]) -> FakeBackend:
    """A device that runs out of memory in these stages."""
    backend = FakeBackend(max_batch=16, every_bucket=True)

    def fail(stage: int, pixels: Pixels) -> None:
        if stage in stages and len(pixels) > largest:
            raise OutOfMemoryError("no room for 123 bytes")

    backend.fail = fail
    return backend


def test_every_stage_has_a_time_in_every_bucket() -> None:
    backend = FakeBackend(stages=2, max_batch=8, every_bucket=True)
    seconds = warm_up(backend)
    assert seconds.shape == (2, 4)
    assert (seconds > 0).all()


def test_batches_run_from_small_to_large_and_short_ones_several_times() -> None:
    backend = FakeBackend(stages=2, max_batch=8, every_bucket=True)
    warm_up(backend)
    sizes = [images for _, images in backend.batches]
    assert sizes[:8] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert all(backend.batches.count((stage, bucket)) >= 5 for stage in range(2) for bucket in backend.buckets)


def test_a_stray_number_is_not_believed() -> None:
    """The fastest of several runs counts, and these runs do not follow one another."""
    backend = FakeBackend(stages=2, max_batch=8, every_bucket=True)
    now, seen = 0.0, 0

    def clock() -> float:
        return now

    def work(stage: int, pixels: Pixels) -> None:
        nonlocal now, seen
        seen += 1
        disturbed = seen in (11, 12, 13, 14)  # the first 8 are not timed
        now += len(pixels) * (stage + 1) / 1000 + disturbed

    backend.fail = work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmlp.model.backends.protocol.time", SimpleNamespace(perf_counter=clock))
        seconds = warm_up(backend)
    assert seconds == pytest.approx(np.array([[1, 2, 4, 8], [2, 4, 8, 16]]) / 1000)


def test_what_takes_long_is_timed_once() -> None:
    backend, now = FakeBackend(stages=1, max_batch=4, every_bucket=True), 0.0

    def work(stage: int, pixels: Pixels) -> None:
        nonlocal now
        now += len(pixels) * 0.75

    backend.fail = work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmlp.model.backends.protocol.time", SimpleNamespace(perf_counter=lambda: now))
        seconds = warm_up(backend)
    assert seconds.tolist() == [[0.75, 1.5, 3]]
    assert [images for _, images in backend.batches] == [1, 2, 4, 1, 2, 4, 1]


def test_buckets_that_nobody_will_use_are_not_timed() -> None:
    """But for one that was only slow the first time."""
    backend, now, seen = FakeBackend(stages=2, max_batch=16, every_bucket=True), 0.0, 0

    def work(stage: int, pixels: Pixels) -> None:
        nonlocal now, seen
        seen += 1
        now += len(pixels) * 0.1 + (seen == 3)

    backend.fail = work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmlp.model.backends.protocol.time", SimpleNamespace(perf_counter=lambda: now))
        seconds = warm_up(backend, 0.1)
    assert backend.buckets == (1, 2, 4)
    assert seconds == pytest.approx(np.array([[0.1, 0.2, 0.4]] * 2))
    assert [images for _, images in backend.batches[:9]] == [1, 1, 2, 2, 2, 4, 4, 8, 8]


def test_a_first_run_does_not_count_however_long_it_takes() -> None:
    """It captures graphs and takes memory, and what seems to take long is not timed again."""
    backend, now = FakeBackend(stages=2, max_batch=4, every_bucket=True), 0.0

    def work(stage: int, pixels: Pixels) -> None:
        nonlocal now
        now += 0.001 * len(pixels) + 100 * ((stage, len(pixels)) not in backend.batches)

    backend.fail = work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmlp.model.backends.protocol.time", SimpleNamespace(perf_counter=lambda: now))
        seconds = warm_up(backend)
    assert seconds == pytest.approx(np.array([[1, 2, 4], [1, 2, 4]]) / 1000)


@pytest.mark.parametrize("stages", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_bucket_without_room_goes_and_those_above_it(
    stages: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    backend = no_room_above(6, stages)
    with caplog.at_level(logging.WARNING, logger="msmlp.engine"):
        seconds = warm_up(backend)
    assert backend.buckets == (1, 2, 4)
    assert seconds.shape == (3, 3)
    assert backend.taken == 0
    assert max(images for _, images in backend.batches) == (8 if 0 not in stages else 4)
    assert [record.getMessage() for record in caplog.records] == [
        "a batch of 8 does not fit (no room for 123 bytes): the largest is 4 now"
    ]


def test_room_that_is_gone_in_a_later_round_steps_down_too() -> None:
    backend, runs = FakeBackend(max_batch=16, every_bucket=True), 0

    def fail(stage: int, pixels: Pixels) -> None:
        nonlocal runs
        runs += len(pixels) == 4
        if runs > 5 and len(pixels) == 4:
            raise OutOfMemoryError("no room")

    backend.fail = fail
    assert warm_up(backend).shape == (3, 2)
    assert backend.buckets == (1, 2)
    assert backend.taken == 0


def test_what_is_left_runs() -> None:
    backend = no_room_above(6, (1,))
    warm_up(backend)
    slots = backend.admit(np.zeros((4, 8, 8, 3), dtype=np.uint8))
    assert len(backend.collect(backend.launch(0, slots)).score) == 4


def test_no_room_for_a_single_image_is_the_end() -> None:
    backend = no_room_above(0, (1,))
    with pytest.raises(DeviceError, match="a batch of 1 does not fit on none: no room for 123 bytes"):
        warm_up(backend)
    assert backend.taken == 0


def test_another_failure_is_not_taken_for_a_lack_of_room() -> None:
    backend = FakeBackend(max_batch=16, every_bucket=True)

    def fail(stage: int, pixels: Pixels) -> None:
        if len(pixels) == 4:
            raise DeviceError("illegal memory access")

    backend.fail = fail
    with pytest.raises(DeviceError, match="illegal memory access"):
        warm_up(backend)
    assert backend.taken == 0
    assert backend.buckets[-1] == 16


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_known_by_what_libraries_say(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match=type(error).__name__) as caught, device_errors():
        raise error
    assert caught.value.__cause__ is error


def test_also_when_cleaning_up_after_it_failed_too() -> None:
    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(OutOfMemoryError), device_errors():
        capture()


def test_other_failures_are_the_devices() -> None:
    with (
        pytest.raises(DeviceError, match=r"^RuntimeError: CUDA error: an illegal memory access$") as caught,
        device_errors(),
    ):
        raise RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might be reported later")
    assert not isinstance(caught.value, OutOfMemoryError)


@pytest.mark.parametrize("error", [OptionError("device", "no"), DeviceError("no"), TypeError("no")], ids=repr)
def test_what_is_no_librarys_failure_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, device_errors():
        raise error
    assert caught.value is error


def test_torch_itself_says_it_so() -> None:
    with pytest.raises(OutOfMemoryError), device_errors():
        torch.empty(2**62, dtype=torch.uint8)
