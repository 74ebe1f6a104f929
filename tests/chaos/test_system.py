"""The disk is full, nothing can be written anywhere, or nobody reads the log."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chaos.harness import Target, at_length, post, serving
from tests.chaos.load import Known
from tests.chaos.test_processes import victims
from tests.servers import encoded, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

INLINE, PROCESS = ("--frontends", "2", "--engine", "inline"), ("--frontends", "2", "--engine", "process")
LAYOUTS = pytest.mark.parametrize("layout", [INLINE, *at_length(PROCESS)], ids=["inline", "process"])
LAYOUTS_AT_LENGTH = pytest.mark.parametrize("layout", [*at_length(INLINE), PROCESS], ids=["inline", "process"])
TALKATIVE = ("--access-log", "--log-level", "debug")

UNSHARE = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--mount"]
FULL = (
    'mount -t tmpfs -o size=64k none "$TMPDIR"; cat /dev/zero >"$TMPDIR/fill"; cd "$TMPDIR"; exec "$@" 2>"$TMPDIR/log"'
)
READ_ONLY = 'mount -o remount,bind,ro / || exit 8; touch "$TMPDIR/no" 2>/dev/null && exit 9; '
"""As containers have it: /dev/shm can still be written."""

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def namespace() -> Callable[[str], list[str]]:
    """A shell script → a command to put before another, which runs after the script, among mounts of its own."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    return lambda script: [*UNSHARE, "sh", "-c", script if "exec" in script else script + 'exec "$@"', "sh"]


@pytest.fixture
def start(tiny_weights: Path, known: list[Known], tmp_path: Path) -> Start:
    @contextmanager
    def started(layout: Sequence[str], *options: str, **more: Any) -> Iterator[Target]:
        with serving(tiny_weights, layout, tmp_path, *options, **more) as served:
            yield Target(served, known, 2, tmp_path)

    return started


def kill_some(target: Target) -> None:
    """What starts anew needs what is full, too."""
    for pid in victims(target, "engine")[:1] or victims(target, "front end"):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def full_pipe() -> Iterator[int]:
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writes, b"x" * 4096)
    try:
        yield writes
    finally:
        os.close(writes)
        os.close(reads)


def check_dropped(target: Target, begun: float) -> None:
    assert target.served.metric("msmlp_log_lines_dropped_total") > begun + 20


@LAYOUTS
def test_nobody_reads_the_log(start: Start, layout: Sequence[str]) -> None:
    with full_pipe() as stderr, start(layout, *TALKATIVE, stderr=stderr) as target:
        begun = target.served.metric("msmlp_log_lines_dropped_total")
        with target.ordeal(live=True):
            check_dropped(target, 0)
        with target.ordeal("503", "lost", "cut"):
            kill_some(target)
        check_dropped(target, begun)
        target.served.process.send_signal(signal.SIGTERM)
        assert target.served.end() == 0


@LAYOUTS_AT_LENGTH
def test_the_disk_of_the_log_and_of_temporary_files_is_full(
    start: Start, namespace: Callable[[str], list[str]], layout: Sequence[str]
) -> None:
    with start(layout, *TALKATIVE, command=namespace(FULL), stderr=subprocess.DEVNULL) as target:
        with target.ordeal(live=True):
            check_dropped(target, 0)
        with target.ordeal("503", "lost", "cut"):
            kill_some(target)


@LAYOUTS_AT_LENGTH
def test_nothing_can_be_written_but_shared_memory(
    start: Start, namespace: Callable[[str], list[str]], layout: Sequence[str]
) -> None:
    """An engine process has its socket there."""
    with start(layout, *TALKATIVE, command=namespace(READ_ONLY)) as target:
        with target.ordeal(live=True) as load:
            load.wait_for(20)
        with target.ordeal("503", "lost", "cut"):
            kill_some(target)


class Cgroup:
    """A memory cgroup of version 1 or 2, inside one that may be written: `CHAOS_CGROUP` names its folder."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / f"msmlp-chaos-{os.getpid()}"
        self.folder.mkdir()
        one = (self.folder / "memory.limit_in_bytes").exists()
        self._limit = self.folder / ("memory.limit_in_bytes" if one else "memory.max")
        self._used = self.folder / ("memory.usage_in_bytes" if one else "memory.current")
        self._free = "-1" if one else "max"
        self._kills = self.folder / ("memory.oom_control" if one else "memory.events")
        self.command = ["sh", "-c", f'echo $$ >{self.folder}/cgroup.procs; exec "$@"', "sh"]

    def leave_room_for(self, size: int | None) -> None:
        self._limit.write_text(self._free if size is None else str(int(self._used.read_text()) + size))

    @property
    def kills(self) -> int:
        return int(re.findall(r"^oom_kill (\d+)", self._kills.read_text(), re.MULTILINE)[0])


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    if not (parent := os.environ.get("CHAOS_CGROUP")):
        pytest.skip("CHAOS_CGROUP names no memory cgroup; test_no_memory_to_be_had limits the address space instead")
    made = Cgroup(Path(parent))
    yield made
    wait_until(lambda: not (made.folder / "cgroup.procs").read_text())
    made.folder.rmdir()


@LAYOUTS
@pytest.mark.chaos
def test_the_system_kills_for_memory(start: Start, cgroup: Cgroup, layout: Sequence[str]) -> None:
    """Whatever is largest; the next one finds more room."""
    large = encoded(np.zeros((5500, 5500, 3), dtype=np.uint8))
    allowed = "lost", "cut", "503", "unconnected"
    with start(layout, command=cgroup.command) as target, target.ordeal(*allowed) as load:
        cgroup.leave_room_for(16 * 2**20)
        for _ in range(20):
            post(target, large, tries=1)
            if cgroup.kills:
                break
        assert cgroup.kills
        cgroup.leave_room_for(None)
        load.wait_for(20)
