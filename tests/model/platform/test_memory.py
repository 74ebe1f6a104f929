from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from msmlp.model.errors import DeviceError, OptionError, OutOfMemoryError
from msmlp.model.nn.config import preset
from msmlp.model.platform.memory import (
    MAX_CAPACITY,
    SHARE,
    failures,
    free_host_memory,
    slot_bytes,
    slots_that_fit,
)

GIB = 2**30


def test_a_slot_holds_the_image_and_the_features_of_all_stages_but_the_last() -> None:
    # tiny: 32 x 32 images; 4 tokens of 32 channels after stage 1, 16 after stage 2.
    assert slot_bytes(preset("tiny"), 4) == 3 * 32 * 32 + 4 * (4 * 32 + 16 * 32)
    assert slot_bytes(preset("tiny"), 2) == 3 * 32 * 32 + 2 * (4 * 32 + 16 * 32)
    assert slot_bytes(preset("mixer-s"), 4) == 3 * 32 * 32


@given(st.integers(1, 10**7), st.integers(0, 10**12), st.integers(1, 4096), st.integers(0, 64))
def test_slots_take_their_share_and_no_more(bytes_a_slot: int, free: int, max_batch: int, reserve: int) -> None:
    try:
        slots = slots_that_fit(bytes_a_slot, free, max_batch=max_batch, reserve=reserve)
    except DeviceError:
        assert (max_batch + reserve + 1) * bytes_a_slot > SHARE * free - bytes_a_slot
        return
    assert max_batch + reserve <= slots <= MAX_CAPACITY + reserve
    assert (slots + 1) * bytes_a_slot <= SHARE * free
    # One more would not fit, or would only wait.
    assert slots == MAX_CAPACITY + reserve or (slots + 2) * bytes_a_slot > SHARE * free - 1


def test_too_little_memory_says_what_is_needed_and_what_there_is() -> None:
    with pytest.raises(DeviceError) as caught:
        slots_that_fit(2**20, 200 * 2**20, max_batch=64, reserve=32)
    assert str(caught.value) == (
        "96 slots need 97.0 MiB, and slots may take 25% of the 200.0 MiB free here; lower --max-batch or set --capacity"
    )


def machine(root: Path, available: int, cgroup: str = "") -> Path:
    """A root folder with what a Linux kernel says of memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_limits_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert free_host_memory(machine(tmp_path, 8 * GIB, "0::/\n")) == 8 * GIB


def test_a_containers_limit_counts_less_what_is_used_but_for_the_page_cache(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/\n")
    group(
        root / "sys/fs/cgroup",
        memory__max=2 * GIB,
        memory__current=GIB,
        memory__stat=f"anon 5\ninactive_file {GIB // 2}",
    )
    assert free_host_memory(root) == GIB + GIB // 2


def test_so_do_the_limits_of_the_groups_above(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/pods/mine\n")
    mount = root / "sys/fs/cgroup"
    group(mount / "pods/mine", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")
    group(mount / "pods", memory__max=3 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 2 * GIB


def test_so_do_limits_of_the_older_kind(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "9:cpu:/\n4:memory:/docker/0123\n0::/\n")
    # In a container the group's path is the machine's, and its own files lie at the top.
    group(
        root / "sys/fs/cgroup/memory",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=GIB // 4,
        memory__stat="total_inactive_file 0",
    )
    assert free_host_memory(root) == GIB * 3 // 4


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/\n")
    group(root / "sys/fs/cgroup", memory__max=1, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 0


def test_where_there_is_no_such_folder_it_is_all_there_is(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) > 0


def test_this_machine_has_some() -> None:
    assert free_host_memory() > 0


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
    with pytest.raises(OutOfMemoryError, match=type(error).__name__) as caught, failures():
        raise error
    assert caught.value.__cause__ is error


def test_also_when_cleaning_up_after_it_failed_too() -> None:
    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(OutOfMemoryError), failures():
        capture()


def test_other_failures_are_the_devices() -> None:
    with (
        pytest.raises(DeviceError, match=r"^RuntimeError: CUDA error: an illegal memory access$") as caught,
        failures(),
    ):
        raise RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might be reported later")
    assert not isinstance(caught.value, OutOfMemoryError)


@pytest.mark.parametrize("error", [OptionError("device", "no"), DeviceError("no"), TypeError("no")], ids=repr)
def test_what_is_no_librarys_failure_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, failures():
        raise error
    assert caught.value is error


def test_torch_itself_says_it_so() -> None:
    with pytest.raises(OutOfMemoryError), failures():
        torch.empty(2**62, dtype=torch.uint8)
