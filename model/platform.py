"""What this machine has: cores and free memory within the control groups of a container, and GPUs.

Without torch, which takes seconds to import.
"""

import ctypes
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msmlp.model.errors import DeviceError

CGROUP_2 = "memory.max", "memory.current", "inactive_file"
CGROUP_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""The files with a control group's limit and use, and the part of the use that is cache."""

DEVICE_NODES = ("/dev/nvidiactl", "/dev/dxg")
"""NVIDIA's driver makes these, on Linux and on WSL."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""From glibc's malloc.h."""

OLDEST_DRIVER = 580
"""The first of NVIDIA's drivers for CUDA 13, with which the builds for GPUs are made."""


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use, within `taskset`, cpusets and a container's limit, rounded up.

    More threads would use up the limit at the start of each of its periods, and stall for the rest.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([seen, *map(math.ceil, _limits(root))]))


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed for this process, instead of giving it back to the system → whether it
    does.

    A training step on a CPU frees hundreds of megabytes and asks for them again; the system would fill each page with
    zeros anew, which took a quarter of the time of training a cascade. Other C libraries have no such options.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def _limits(root: Path) -> Iterator[float]:
    for folder, version_2 in _groups("cpu", root):
        try:
            if version_2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{each}_us").read_text()) for each in ("quota", "period"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period


def _groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's control groups for `controller` and their parents, and whether they are version 2.

    In a container a group's path may lie outside the mounts, so a folder may not exist.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if version_2 or controller in controllers.split(","):
            # With version 1, some runtimes mount `cpu,cpuacct` without a link for each.
            for mounted in {"" if version_2 else controller, controllers}:
                for each in (Path(path), *Path(path).parents):
                    yield root / "sys/fs/cgroup" / mounted / str(each).lstrip("/"), version_2


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes this process can still take: what the machine has available, or less within its control groups."""
    return max(0, min([_available(root), *_left(root)]))


def _available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux: all memory of the machine.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left(root: Path) -> Iterator[int]:
    for folder, version_2 in _groups("memory", root):
        limit, used, cache = CGROUP_2 if version_2 else CGROUP_1
        try:
            most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # The kernel frees page cache when memory is wanted.
        yield most - taken + int(statistics.get(cache, 0))


def gpu_present() -> bool:
    """Whether this process may see a GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(map(os.path.exists, DEVICE_NODES))


def gpu_driver() -> str | None:
    """The version of NVIDIA's driver, such as 580.65.06; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said and said[0][0].isdigit() else None


def free_gpu_memory() -> int:
    """Bytes free on the first GPU that CUDA shows this process; DeviceError if the driver does not say.

    From CUDA's own driver, as ONNX Runtime cannot tell and may be installed without torch. nvidia-smi numbers GPUs in
    another order than CUDA, and does not know the memory of a part of one (MIG).
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    calls: tuple[tuple[Any, ...], ...] = (
        ("cuInit", 0),
        ("cuDeviceGet", ctypes.byref(device), 0),
        # The context that ONNX Runtime will use; it stays.
        ("cuDevicePrimaryCtxRetain", ctypes.byref(context), device),
        ("cuCtxPushCurrent_v2", context),
        ("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)),
        ("cuCtxPopCurrent_v2", ctypes.byref(context)),
    )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        for name, *arguments in calls:
            if status := getattr(driver, name)(*arguments):
                raise OSError(f"{name} failed with error {status}")
    except (OSError, AttributeError) as error:
        raise DeviceError(f"CUDA does not say how much memory the GPU has free ({error}); set --capacity") from None
    return free.value
