"""docs/python.md runs as it stands, but for the port."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.docs.commands import blocks_of
from tests.servers import serving

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
blocks = partial(blocks_of, PAGE)


@pytest.fixture(scope="module")
def url(tiny_weights: Path) -> Iterator[str]:
    with serving(build_service(Settings(weights=tiny_weights, device="cpu", engine="thread"))) as client:
        yield str(client.base_url)


@pytest.fixture
def here(tiny_weights: Path, cat_photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures and the weights of the page."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine").symlink_to(tiny_weights)
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(cat_photo)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_program_prints_its_answer(number: int, url: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = blocks("python")[number].replace("http://127.0.0.1:8000", url)
    exec(compile(program, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed
    if "except" in program:
        assert printed == "422 bad_option top_k: expected a whole number from 1 to 1e9\n"


def test_the_commands_run(url: str, here: Path) -> None:
    [commands] = blocks("sh")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-ec", commands.replace("http://127.0.0.1:8000", url)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("GFLOPs on average") == 2
