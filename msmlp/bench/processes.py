"""Server processes of a benchmark: started on a free port, stopped with SIGTERM, CPU time read from /proc."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from msmlp import Client
from msmlp.model.errors import DeviceError

START_SECONDS = 300
END_SECONDS = 60
_ADDRESS = re.compile(r"serving .* on (http://127\.0\.0\.1:\d+)")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Server:
    """Where a server answers, and its process (None if it was not started here)."""

    name: str
    url: str
    process: int | None

    def cpu_seconds(self) -> float | None:
        """CPU time so far, child processes included; None where it is not known."""
        if self.process is None or not _PROC.is_dir():
            return None
        return sum(_ticks(pid) for pid in family(self.process)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    # After the name in brackets, which may hold anything: utime, stime, and those of children that have ended.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(int(number) for number in fields[11:15])


def family(pid: int) -> Iterator[int]:
    """A process and those it has started, by /proc."""
    yield pid
    for children in (_PROC / str(pid) / "task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


@contextmanager
def server_process(
    name: str, arguments: list[str], say: Callable[[str], None], *, python: str = sys.executable
) -> Iterator[Server]:
    """`python` with these arguments, which logs "serving ... on URL"; ready inside the block, ended after it.

    Raises:
        DeviceError: it ended or did not become ready; with the last line of its log.
    """
    with tempfile.NamedTemporaryFile(prefix=f"msmlp-{name}-", suffix=".log") as log:
        process = subprocess.Popen([python, *arguments], stdout=log, stderr=log)
        try:
            url = _wait_until_ready(name, process, Path(log.name))
            say(f"started {name} on {url}")
            yield Server(name, url, process.pid)
        finally:
            say(f"{_end(process)} {name}")


def _wait_until_ready(name: str, process: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        found = _ADDRESS.search(log.read_text(errors="replace"))
        if found and is_ready(found[1]):
            return found[1]
        time.sleep(0.05)
    words = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    raise DeviceError(f"the {name} server did not become ready; it said: {words[-1]}")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def image_size(url: str) -> int:
    with Client(url) as client:
        return int(client.model()["preprocess"]["size"])


def _end(process: "subprocess.Popen[bytes]") -> str:
    _, *children = family(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
        end = "stopped"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        end = "killed"
    for child in children:  # not every server ends its own
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return end
