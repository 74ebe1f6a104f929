"""What the README says is there, and its offline commands run as they stand. (Its calls: tests/system.)"""

import json
import re
import socket
import subprocess
import tomllib
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.docs.commands import blocks_of, run_commands
from tests.fakes import PATIENCE_SECONDS
from tests.processes import msmlp_serve

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
blocks = partial(blocks_of, README)


@pytest.mark.system  # it trains
def test_training_on_a_folder_of_pictures_goes_as_the_readme_says(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-photos").symlink_to(digits_folder)
    [commands] = blocks("sh")
    monkeypatch.chdir(tmp_path)
    printed = run_commands(commands)
    last_exit = re.search(r"^3 +([0-9.]+) %", printed, flags=re.MULTILINE)
    assert last_exit, printed
    assert float(last_exit[1]) > 70
    assert (tmp_path / "weights" / "mine" / "calibration.json").exists()


@pytest.mark.parametrize("verb", re.findall(r"^make ([a-z-]+)", "\n".join(blocks("console")), flags=re.MULTILINE))
def test_make_knows_the_verbs(verb: str) -> None:
    done = subprocess.run(["make", "-n", verb], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_line_that_waits_ends_when_the_first_call_will_be_answered(tiny_weights: Path, cat_photo: bytes) -> None:
    [line] = re.findall(r"^curl .*/readyz$", "\n".join(blocks("console")), flags=re.MULTILINE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with msmlp_serve(tiny_weights, "--port", port) as served:
        command = line.replace("localhost:8000", f"localhost:{port}")
        # Begun before anything listens.
        waited = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
        assert (waited.returncode, waited.stdout) == (0, '{"ready":true}'), waited.stderr
        assert httpx.post(f"{served.url}/classify", content=cat_photo, timeout=PATIENCE_SECONDS).status_code == 200


def test_the_answer_shown_is_one_of_the_default_weights() -> None:
    answer = json.loads(blocks("json")[0])
    manifest = json.loads((ROOT / "weights" / answer["model"]["name"] / "manifest.json").read_text())
    assert answer["results"][0]["exits"] == len(manifest["cascade"]["stages"])
    assert answer["results"][0]["label"] in manifest["classes"]


def test_the_wheel_is_the_one_that_a_build_writes() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for page in (README, (ROOT / "docs" / "python.md").read_text()):
        assert re.findall(r"dist/(.+?)\[", page) == [f"msmlp-{version}-py3-none-any.whl"]


def test_the_accuracy_and_cost_are_those_of_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text().partition("## `cifar10-s`")[2].partition("\n## ")[0]
    for point in ("`balanced`", "all to exit 3"):
        [(accuracy, gflops)] = re.findall(rf"^\| {point} \| (.+?) % \| [^|]+ \| (.+?) \|", results, re.MULTILINE)
        assert re.search(rf"{accuracy} %[^%]*at {gflops}\b", README), point
