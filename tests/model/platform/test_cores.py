import os
from pathlib import Path

import pytest

from msmlp.model.platform.cores import cores


def machine(root: Path, groups: str) -> Path:
    """A root folder with what a Linux kernel says of control groups."""
    (root / "proc/self").mkdir(parents=True)
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


def test_without_limits_they_are_those_it_may_run_on(tmp_path: Path) -> None:
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
