"""docs/oip.md: its programs and its call run as they stand, but for the ports, and its tables leave nothing out."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from msmlp.service.grpc.calls import CODES
from msmlp.service.grpc.messages import METHODS
from msmlp.service.oip.model import INPUTS, OUTPUTS
from tests.docs.commands import blocks_of
from tests.docs.test_readme import ROOT
from tests.processes import Served, msmlp_serve

PAGE = (ROOT / "docs" / "oip.md").read_text()
blocks = partial(blocks_of, PAGE)


@pytest.fixture(scope="module")
def served(tiny_weights: Path) -> Iterator[Served]:
    with msmlp_serve(tiny_weights, "--grpc-port", "0") as running:
        running.wait_for("engine: ready")
        yield running


def here(block: str, served: Served) -> str:
    addresses = {"localhost:8000": served.url.removeprefix("http://"), "localhost:8001": served.grpc}
    for shown, real in addresses.items():
        block = block.replace(shown, real)
    return block


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_program_prints_label_exit_and_cost(served: Served, number: int) -> None:
    program = here(blocks("python")[number], served)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[b'\d'\] \[[123]\] \[[\d.e-]+\]\n", done.stdout)


def test_the_image_as_the_body(served: Served, tmp_path: Path) -> None:
    [call] = blocks("bash")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(["sh", "-euc", here(call, served)], cwd=tmp_path, check=True)
    assert (tmp_path / "answer.bin").read_bytes().startswith(b'{"model_name": "msmlp"')


def test_nothing_is_left_out() -> None:
    rows = set(re.findall(r"^\| `?(\w+)`? \|", PAGE, flags=re.MULTILINE))
    assert {*INPUTS, *OUTPUTS, *(code.name for code in CODES.values())} <= rows
    assert set(METHODS) <= set(re.findall(r"`(\w+)`", PAGE))


def test_the_server_starts_as_the_page_says() -> None:
    [block] = blocks("console")
    install, serve = block.splitlines()
    assert (ROOT / install.split()[0]).exists()
    assert serve.startswith(".venv/bin/msmlp serve --grpc-port ")
