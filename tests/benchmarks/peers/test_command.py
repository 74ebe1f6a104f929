"""The command line: what is asked for, what is kept, and what is said."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers.run import Options
from benchmarks.peers.servers import CASCADE, OURS, PLAIN
from msmlp.model.errors import DeviceError

ROOT = Path(__file__).resolve().parents[3]
RUN = {"round": 0, "case": CASCADE, "server": OURS, "connections": 8, "requests_per_second": 500.0, "p99_ms": 9.0}
COUNTED = {"outside_seconds_per_1000": 0.3, "wrong": 0, "degraded": 0}


def test_what_was_measured_before_a_server_died_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(options: Options, *given: Any) -> Iterator[dict[str, Any]]:
        asked.append((options, *given))
        yield {"packages": {"litserve": "1"}, "settings": [{"best": 1}]}
        yield {"runs": [{**RUN, **COUNTED}]}
        yield {"runs": [{**RUN, **COUNTED, "requests_per_second": 700.0, "round": 1}]}
        raise DeviceError("a server did not start")

    monkeypatch.setattr(command, "run", run)
    (tmp_path / "before.json").write_text(json.dumps({"settings": [{"case": CASCADE, "server": "LitServe"}]}))
    words = ["--work", str(tmp_path), "--case", CASCADE, "--case", PLAIN, "--connections", "8,32", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["peers", *words, "--settings", str(tmp_path / "before.json")])
    with pytest.raises(DeviceError):
        command.measured(command.arguments())
    document = json.loads((tmp_path / "run.json").read_text())
    assert [run["requests_per_second"] for run in document["runs"]] == [500, 700]
    assert document["rows"][0]["requests_per_second"] == 600
    assert document["packages"] == {"litserve": "1"}
    assert any(goal["measured"] == 0.3 and goal["met"] for goal in document["goals"])
    [(options, work, _, settings, _)] = asked
    assert (options.cases, options.connections, options.rounds) == ((CASCADE, PLAIN), (8, 32), 2)
    assert options.seconds == Options().seconds
    assert (work, settings) == (tmp_path, [{"case": CASCADE, "server": "LitServe"}])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--case", "shipped weights"], 1, "without CIFAR-10 (--cifar10 FOLDER) the shipped weights are left out"),
        (["--rounds", "0"], 2, "argument --rounds"),
        (["--connections", "8,-1"], 2, "argument --connections"),
    ],
)
def test_a_mistake_is_said(words: list[str], status: int, said: str, tmp_path: Path) -> None:
    environment = {"TEST_CIFAR10": str(tmp_path / "nowhere"), "PYTHONPATH": str(ROOT), "PATH": ""}
    line = [sys.executable, "-m", "benchmarks.peers", "--work", str(tmp_path), *words]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
