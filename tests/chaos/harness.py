"""A real service under load while something happens to it, and the one check at its end."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.bench.processes import family
from tests.chaos import probe
from tests.chaos.load import BOUNDED, Known, Load
from tests.fakes import PATIENCE_SECONDS
from tests.processes import COMMAND, Served, environment


def at_length(*values: Any) -> list[Any]:
    """Parameters that only `make chaos` uses."""
    return [pytest.param(value, marks=pytest.mark.chaos) for value in values]


OPTIONS = ("--max-batch", "2", "--capacity", "32", "--decode-threads", "2")
"""Small batches are soon warm."""
SHORT = ("--head-seconds", "2", "--body-seconds", "2", "--keep-alive-seconds", "4")
"""So that slow clients do not make slow tests."""

LIVE_SECONDS = 0.25
"""The longest that `/livez` may take, whatever happens, on a machine that has nothing else to do."""

SETTLE_SECONDS = 90.0 if BOUNDED else PATIENCE_SECONDS
"""A process that died again and again is started after half a minute."""

GAUGES = (
    "msmlp_inflight_images",
    "msmlp_queue_images",
    "msmlp_body_work",
    "msmlp_decode_backlog_seconds",
    "msmlp_connections",
    "msmlp_backlog_seconds",
)


@dataclass(frozen=True)
class State:
    """What a service holds. `gauges` are of GAUGES, `memory` its shared memory, `folders` its temporary ones."""

    gauges: dict[str, float]
    processes: int
    descriptors: int
    memory: int
    folders: int

    def above(self, start: "State") -> list[str]:
        """In words, what is more than it was."""
        more = [f"{name} is {value:g}" for name, value in self.gauges.items() if value > start.gauges[name] + 1e-9]
        for field in fields(self)[1:]:
            was, now = getattr(start, field.name), getattr(self, field.name)
            more += [f"{now} {field.name}, there were {was}"] if now > was else []
        return more


def state_of(served: Served, folder: Path) -> State:
    text = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
    gauges = {
        name: sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        for name in GAUGES
    }
    processes = list(family(served.process.pid))
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in processes]
    memory = {line.split()[4] for each in maps for line in each.splitlines() if "memfd:msmlp" in line}
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)
    return State(gauges, len(processes), descriptors, len(memory), len(list(folder.glob("msmlp-*"))))


class Target:
    """A service with `frontends` that things are done to; `folder` is its TMPDIR."""

    def __init__(self, served: Served, known: Sequence[Known], frontends: int, folder: Path) -> None:
        self.served, self.known, self.frontends, self.folder = served, known, frontends, folder
        with Load(self.url, known) as load:  # what it takes once, it takes now
            load.wait_for(20)
        load.check()
        time.sleep(0.5)
        self.start = state_of(served, folder)

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    @contextmanager
    def ordeal(self, *allowed: str, live: bool = False, traces: bool = False) -> Iterator[Load]:
        """Inside, the service is under load. It must answer again afterwards, and be as it was; see `Load.check` for
        what else it may answer meanwhile. `live`: `/livez` is always answered at once; `traces` may be logged."""
        said = len(self.served.log)
        with probed(self.url) if live and BOUNDED else nullcontext(), Load(self.url, self.known) as load:
            load.wait_for(10)
            yield load
            load.wait_for(20)
        load.check(*allowed)
        self.check_settled()
        assert traces or "Traceback" not in self.served.log[said:], self.served.log[said:][-4000:]

    def check_settled(self) -> None:
        """Nothing is left over, all front ends are ready, and it answers."""
        until, left = time.monotonic() + SETTLE_SECONDS, ["not looked yet"]
        while left and time.monotonic() < until:
            time.sleep(0.2)
            try:
                left = state_of(self.served, self.folder).above(self.start)
                if self.served.metric("msmlp_frontends_ready") != self.frontends:
                    left.append("not all front ends are ready")
            except (httpx.HTTPError, FileNotFoundError, ProcessLookupError):  # a process ends just now
                left = ["it does not answer"]
        assert not left, left
        with Load(self.url, self.known) as load:
            load.wait_for(10)
        load.check()


def post(target: Target, content: bytes, *, tries: int = 5) -> int | None:
    """The status of a picture's answer; None without one, as when its front end was killed each time."""
    for _ in range(tries):
        with suppress(httpx.TransportError):
            return httpx.post(f"{target.url}/classify", content=content, timeout=PATIENCE_SECONDS).status_code
    return None


@contextmanager
def probed(url: str) -> Iterator[None]:
    """`/livez` is answered within LIVE_SECONDS all the time."""
    command = [sys.executable, probe.__file__, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield
        took = json.loads(process.communicate()[0])
    assert min(took) >= 0, "not all were answered"
    assert max(took) < LIVE_SECONDS, f"{sorted(took)[-5:]} of {len(took)}"


class Unheard(Served):
    """A service whose log nobody can read; it listens at a port chosen before."""

    def __init__(self, process: "subprocess.Popen[Any]", port: int) -> None:
        self.process, self._port = process, port

    @property
    def log(self) -> str:
        return ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def wait_until_ready(self, frontends: int = 1) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.metric("msmlp_frontends_ready") == frontends:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError(f"it is not ready; status {self.process.poll()}")

    def end(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    weights: Path,
    layout: Sequence[str],
    folder: Path,
    *options: str,
    limits: Sequence[str] = OPTIONS,
    command: Sequence[str] = (),
    **popen: Any,
) -> Iterator[Served]:
    """`msmlp serve` in a layout, which begins with --frontends, with `folder` as its TMPDIR; `command` goes before it.
    With `stderr` its log is not read."""
    port = free_port()
    arguments = ["serve", "--weights", str(weights), "--port", str(port), "--device", "cpu", *limits]
    given = {"stderr": subprocess.PIPE, "text": True, "env": environment(TMPDIR=str(folder)), **popen}
    process = subprocess.Popen([*command, *COMMAND, *arguments, *layout, *options], **given)
    served = Served(process) if given["stderr"] == subprocess.PIPE else Unheard(process, port)
    try:
        served.wait_until_ready(int(layout[1]))
        yield served
    finally:
        served.kill()
