import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from msmlp.model.errors import DeviceError
from msmlp.model.platform import cores, free_gpu_memory, free_host_memory, gpu_driver, keep_freed_memory

GIB = 2**30


def machine(root: Path, groups: str) -> Path:
    """A root folder with what a Linux kernel says of its 8 GiB of free memory and of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def limit(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture(autouse=True)
def sixty_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node of a cluster has them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def test_without_limits_cores_are_those_it_may_run_on(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    assert cores(root) == 64
    limit(root / "sys/fs/cgroup", cpu__max="max 100000")
    assert cores(root) == 64


@pytest.mark.parametrize(("quota", "allowed"), [(200_000, 2), (250_000, 3), (50_000, 1), (10**8, 64)])
def test_a_containers_limit_counts_rounded_up(tmp_path: Path, quota: int, allowed: int) -> None:
    root = machine(tmp_path, "0::/\n")
    limit(root / "sys/fs/cgroup", cpu__max=f"{quota} 100000")
    assert cores(root) == allowed


def test_so_do_the_limits_of_the_groups_above(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pods/mine\n")
    limit(root / "sys/fs/cgroup/pods/mine", cpu__max="800000 100000")
    limit(root / "sys/fs/cgroup/pods", cpu__max="400000 100000")
    assert cores(root) == 4


def test_controllers_that_are_mounted_together_are_found(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/docker/0123\n")
    limit(root / "sys/fs/cgroup/cpu,cpuacct", cpu__cfs_quota_us=300_000, cpu__cfs_period_us=100_000)
    assert cores(root) == 3


def test_so_do_limits_of_the_older_kind(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/docker/0123\n0::/\n")
    limit(root / "sys/fs/cgroup/cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    assert cores(root) == 64
    limit(root / "sys/fs/cgroup/cpu", cpu__cfs_quota_us=300_000)
    assert cores(root) == 3


def test_without_limits_free_memory_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert free_host_memory(machine(tmp_path, "0::/\n")) == 8 * GIB


def test_a_containers_limit_counts_less_what_is_used_but_for_the_page_cache(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    limit(
        root / "sys/fs/cgroup",
        memory__max=2 * GIB,
        memory__current=GIB,
        memory__stat=f"anon 5\ninactive_file {GIB // 2}",
    )
    assert free_host_memory(root) == GIB + GIB // 2


def test_so_do_memory_limits_of_the_groups_above(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pods/mine\n")
    mount = root / "sys/fs/cgroup"
    limit(mount / "pods/mine", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")
    limit(mount / "pods", memory__max=3 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 2 * GIB


def test_so_do_memory_limits_of_the_older_kind(tmp_path: Path) -> None:
    root = machine(tmp_path, "9:cpu:/\n4:memory:/docker/0123\n0::/\n")
    # In a container the group's path is the machine's, and its own files lie at the top.
    limit(
        root / "sys/fs/cgroup/memory",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=GIB // 4,
        memory__stat="total_inactive_file 0",
    )
    assert free_host_memory(root) == GIB * 3 // 4


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    limit(root / "sys/fs/cgroup", memory__max=1, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 0


def test_where_there_is_no_such_folder_it_is_all_there_is(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) > 0


def test_this_machine_has_some() -> None:
    assert free_host_memory() > 0


@pytest.mark.parametrize("answer", ["580.65.06\n", "580.65.06\n580.65.06\n"])
def test_the_driver_says_its_version_once_for_every_gpu(nvidia_smi: Path, answer: str) -> None:
    (nvidia_smi / "answer").write_text(answer)
    assert gpu_driver() == "580.65.06"
    assert "--query-gpu=driver_version" in (nvidia_smi / "asked").read_text()


@pytest.mark.parametrize("answer", ["", "[N/A]\n", "No devices were found\n", None])
def test_a_driver_that_does_not_answer_has_no_version(nvidia_smi: Path, answer: str | None) -> None:
    if answer is not None:
        (nvidia_smi / "answer").write_text(answer)
    assert gpu_driver() is None


def test_without_nvidia_smi_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_driver() is None


class Driver:
    """Stands in for CUDA's driver of two GPUs with different memory: they count in CUDA's order, and the memory is that
    of the GPU whose context is current. `fails` is the call that does not work."""

    free = (70 * GIB, 10 * GIB)

    def __init__(self, fails: str = "") -> None:
        self.fails, self.current = fails, -1

    def __getattr__(self, name: str) -> Any:
        call = getattr(type(self), f"_{name}", lambda self, *_: None)
        return lambda *arguments: 999 if name == self.fails else call(self, *arguments) or 0

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802
        device._obj.value = ordinal

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:  # noqa: N802
        context._obj.value = 1 + device.value

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:  # noqa: N802
        self.current = context.value - 1

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free._obj.value, total._obj.value = self.free[self.current], 80 * GIB

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:  # noqa: N802
        self.current = -1


def test_free_memory_is_that_of_the_first_gpu_in_cudas_order(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia_smi / "answer").write_text("10240\n")  # GPU 0 of nvidia-smi is CUDA's second
    driver, loaded = Driver(), []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name) or driver)
    assert free_gpu_memory() == 70 * GIB
    assert loaded == ["libcuda.so.1"]
    assert driver.current == -1, "the thread's own context is current again"


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuMemGetInfo_v2"])
def test_a_driver_that_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(fails=call))
    with pytest.raises(DeviceError, match=f"{call} failed with error 999.; set --capacity"):
        free_gpu_memory()


def test_without_a_driver_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match="cannot open shared object file"):
        free_gpu_memory()


@pytest.mark.gpu
def test_cudas_driver_and_torch_agree_about_free_memory() -> None:
    ours = free_gpu_memory()
    theirs, total = torch.cuda.mem_get_info()
    assert 0 < ours <= total
    assert abs(ours - theirs) < GIB  # others may use the GPU too


FAULTS = """
import resource, sys
import numpy as np
from msmlp.model.platform import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc")
def test_memory_that_is_freed_can_be_kept() -> None:
    """256 MiB that are asked for again and again are filled with zeros by the system once, or each time."""

    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") * 10 < faults("give back")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
