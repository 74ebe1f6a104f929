import os
import stat
from pathlib import Path

import pytest

from msmlp.model.errors import DeviceError
from msmlp.model.platform import cores, free_gpu_memory, free_host_memory

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


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that says what stands in `answer`, and notes what it was asked in `asked`."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\ncat "{tmp_path}/answer"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_the_driver_says_what_is_free(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia_smi / "answer").write_text("80123\n")
    assert free_gpu_memory() == 80123 * 2**20
    assert "--id=0 " in (nvidia_smi / "asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    free_gpu_memory()
    assert "--id=3 " in (nvidia_smi / "asked").read_text()


@pytest.mark.parametrize("answer", ["", "[N/A]\n"])
def test_a_driver_that_does_not_know_is_an_error(nvidia_smi: Path, answer: str) -> None:
    (nvidia_smi / "answer").write_text(answer)
    with pytest.raises(DeviceError, match="set --capacity"):
        free_gpu_memory()
