"""Real `msmlp` processes."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import trusting
from tests.fakes import PATIENCE_SECONDS
from tests.servers import wait_until

Call = Callable[..., int]
"""What the fixture `call` is."""

MSMLP = str(Path(sys.executable).parent / "msmlp")
COMMAND = [MSMLP] if Path(MSMLP).exists() else [sys.executable, "-m", "msmlp"]
"""`msmlp`, also on a machine with a GPU where only the packages that it needs were brought."""


def layout(frontends: int, engine: str, *marks: pytest.MarkDecorator) -> Any:
    """A parameter: options of `msmlp serve`."""
    options = ("--frontends", str(frontends), "--engine", engine)
    return pytest.param(options, id=f"{frontends} {engine}", marks=marks)


LAYOUTS = [
    layout(1, "inline"),
    layout(3, "process"),
    layout(1, "process", pytest.mark.system),
    layout(3, "inline", pytest.mark.system),
]
"""The ways to serve over which the contract is tested; see the fixture `serve_as`."""


def environment(**more: str) -> dict[str, str]:
    """Ours, without settings that would decide the tests, or make them wait."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MSMLP_")}
    return {**kept, "MSMLP_DRAIN_SECONDS": "0", **more}


def run_msmlp(*arguments: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """A command to its end; stdout and stderr apart."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


class Served:
    """A running `msmlp serve`, and what it logs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._append(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """All it has said so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Until the log matches; fails when the process ends without."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or re.search(pattern, "".join(self._lines)), PATIENCE_SECONDS)
        found = re.search(pattern, self.log)
        assert found, f"no {pattern!r} in the log:\n{self.log}"
        return found

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.wait_for(r"(https?://127\.0\.0\.1:\d+)")[1]

    @property
    def metrics(self) -> str:
        """Where its operators look, with `--metrics-port`."""
        return self.wait_for(r"serving metrics on (\S+)/metrics")[1]

    @property
    def grpc(self) -> str:
        """Where it listens for gRPC, with `--grpc-port`."""
        return self.wait_for(r"serving gRPC on (\S+)")[1]

    def metric(self, name: str) -> float:
        """Now; the sum over its labels. A front end that is killed may take a connection with it: asked again then."""
        ask = partial(httpx.get, f"{self.url}/metrics", timeout=PATIENCE_SECONDS, verify=trusting())
        try:
            text = ask().text
        except (httpx.ReadError, httpx.RemoteProtocolError):
            text = ask().text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def wait_until_ready(self, frontends: int = 1) -> None:
        """All of them, on its board too."""
        self.wait_for("ready: ")  # or the service has ended and will never listen
        wait_until(lambda: self.metric("msmlp_frontends_ready") == frontends)

    def end(self) -> int:
        """Its exit status, once it has ended by itself or by a signal sent before."""
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        return status

    def kill(self) -> None:
        """Whatever happened."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def msmlp_serve(weights: Path, *options: str) -> Iterator[Served]:
    """`msmlp serve` on a free port of its own choice, killed at the end if it still runs."""
    with started(*COMMAND, "serve", "--weights", str(weights), "--port", "0", "--device", "cpu", *options) as served:
        yield served


@contextmanager
def started(*command: str, **variables: str) -> Iterator[Served]:
    """A server's process, killed at the end if it still runs; `variables` of its environment."""
    served = Served(subprocess.Popen(command, env=environment(**variables), stderr=subprocess.PIPE, text=True))
    try:
        yield served
    finally:
        served.kill()
