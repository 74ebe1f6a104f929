"""How many cores this process may use, and the control groups where Linux limits what a container takes."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use, within `taskset`, cpusets and a container's limit, rounded up.

    More threads would use up the limit at the start of each of its periods, and stand still for the rest.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([seen, *map(math.ceil, _limits(root))]))


def _limits(root: Path) -> Iterator[float]:
    for folder, version_2 in groups("cpu", root):
        try:
            if version_2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{each}_us").read_text()) for each in ("quota", "period"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's control groups for `controller` and their parents, and whether they are version 2.

    In a container a group's path may lie outside what is mounted, so a folder may not exist.
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
