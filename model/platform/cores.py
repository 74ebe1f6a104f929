"""The control groups of this process: where Linux says what a container may take of its machine."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Folders of the groups for `controller` and of those above them, and whether they are of the newer kind (v2).

    In a container a group's path may lie outside what is mounted, so not every folder exists.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        newer = not controllers
        if newer or controller in controllers.split(","):
            # Of the older kind some runtimes mount `cpu,cpuacct` without a link for each.
            for mounted in {"" if newer else controller, controllers}:
                for each in (Path(path), *Path(path).parents):
                    yield root / "sys/fs/cgroup" / mounted / str(each).lstrip("/"), newer


# FROM model/platform/cores.py:
# How many threads have a core to run on.


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use: `taskset` and cpusets count, and a container's limit, rounded up.

    More threads than that would use the limit up at the beginning of each of its periods, and all stand still until the
    next.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([seen, *map(math.ceil, _limits(root))]))


def _limits(root: Path) -> Iterator[float]:
    for folder, newer in groups("cpu", root):
        try:
            if newer:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{each}_us").read_text()) for each in ("quota", "period"))
        except (OSError, ValueError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period
