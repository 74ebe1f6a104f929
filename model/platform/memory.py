"""How much of the host's memory is free, within the control groups of this process."""

import os
from collections.abc import Iterator
from pathlib import Path

from msmlp.model.platform.cores import groups

CGROUP_2 = "memory.max", "memory.current", "inactive_file"
CGROUP_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""The files with a control group's limit and use, and the part of the use that is cache."""


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes this process can still take: what the machine has available, or less if its control groups say so."""
    return max(0, min([_available(root), *_left(root)]))


def _available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux: all memory of the machine.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left(root: Path) -> Iterator[int]:
    for folder, version_2 in groups("memory", root):
        limit, used, cache = CGROUP_2 if version_2 else CGROUP_1
        try:
            most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # The kernel frees page cache when memory is wanted.
        yield most - taken + int(statistics.get(cache, 0))
