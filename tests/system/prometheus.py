"""A real Prometheus, as Debian packages it, with the repository's own configuration."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes import PATIENCE_SECONDS

CONFIGURATION = Path(__file__).resolve().parents[2] / "docker" / "prometheus"
Values = dict[tuple[str, ...], float]


def tool(name: str) -> str:
    """The path of a command of the package."""
    found = shutil.which(name)
    if not found:
        pytest.fail(f"needs {name} (on Debian: apt-get install prometheus)")
    return found


def promtool(*arguments: str | Path, given: str = "") -> None:
    """A check that must say nothing against what it is given."""
    command = [tool("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr


class Prometheus:
    """One that runs, asked over its HTTP API."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **parameters: Any) -> Any:
        """The `data` of an answer."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def series(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """What a query returns, now or at a time."""
        result: list[dict[str, Any]] = self.get("query", query=query, **({} if at is None else {"time": at}))["result"]
        return result

    def values(self, query: str, *labels: str, at: float | None = None) -> Values:
        """The same by the values of these labels."""
        found = self.series(query, at)
        return {tuple(one["metric"][label] for label in labels): float(one["value"][1]) for one in found}

    def value(self, query: str, at: float | None = None) -> float:
        """Of a query that returns one series."""
        [value] = self.values(query, at=at).values()
        return value

    def next_scrape(self, target: str) -> float:
        """When the service was scraped, the next time from now on."""
        asked = time.time()
        for _ in range(PATIENCE_SECONDS * 20):
            found = self.values(f'timestamp(msmlp_engine_up{{instance="{target}"}})')
            if found and (scraped := found[()]) > asked:
                return scraped
            time.sleep(0.05)
        raise AssertionError("Prometheus scrapes nothing")


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """It scrapes `target` and evaluates its rules every second; its files are in `folder`."""
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(CONFIGURATION / name) for name in configuration["rule_files"]]
    [job] = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(configuration))  # which is YAML too
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([tool("prometheus"), *options], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_SECONDS) as http:
            running = Prometheus(http)
            _wait(running, process, folder / "log")
            yield running
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _wait(running: Prometheus, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(PATIENCE_SECONDS * 20):
        with contextlib.suppress(httpx.TransportError, AssertionError):
            if running.get("targets")["activeTargets"]:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"Prometheus does not become ready: {log.read_text()}")
