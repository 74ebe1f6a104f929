"""How many threads have a core to run on."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from msmlp.model.cgroups import groups


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
