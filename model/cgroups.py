"""The control groups of this process: where Linux says what a container may take of its machine."""

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
