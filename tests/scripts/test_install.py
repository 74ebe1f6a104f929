"""The installer says what it does, and shows pip's downloads in a terminal."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/bash
# Stands for every Python here: it writes down what it is told, and has neither torch nor the other ONNX Runtime.
echo "$@" >> "$CALLS"
case "$*" in
*"import torch"* | *show*) exit 1 ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose virtual environment is there, with a Python that installs nothing."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "calls").touch()
    return {**os.environ, "VENV": str(tmp_path / "venv"), "PYTHON": str(python), "CALLS": str(tmp_path / "calls")}


def installed(environment: dict[str, str], *arguments: str, terminal: bool = False) -> tuple[str, list[str]]:
    """What the script said on stderr, and what it told pip."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [ROOT / "scripts" / "install.sh", *arguments],
        env=environment,
        stdout=theirs if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    calls = Path(environment["CALLS"]).read_text().splitlines()
    return done.stderr, [call for call in calls if " install " in call]


def test_it_says_what_it_installs(environment: dict[str, str]) -> None:
    said, calls = installed(environment, "cpu", "serve,train")
    lines = said.splitlines()
    assert lines[0].startswith("msmlp: installing torch 2.")
    assert lines[1] == "msmlp: installing msmlp with the extras cpu,serve,train"
    assert lines[2] == f"msmlp: done: activate it with . {environment['VENV']}/bin/activate"
    assert all("--quiet" in call for call in calls)


def test_without_training_there_is_no_torch(environment: dict[str, str]) -> None:
    said, calls = installed(environment, "cpu", "serve")
    assert "torch" not in said
    assert len(calls) == 1


def test_a_terminal_shows_the_downloads(environment: dict[str, str]) -> None:
    _, calls = installed(environment, "gpu", "serve", terminal=True)
    assert calls
    assert not any("--quiet" in call for call in calls)


def failed(environment: dict[str, str]) -> str:
    """What the script says on stderr when it fails."""
    done = subprocess.run(
        [ROOT / "scripts" / "install.sh", "cpu", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    return done.stderr


def test_a_folder_of_another_kind_is_left_as_it_is(environment: dict[str, str], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").touch()
    for path in (taken, taken / "mine.txt"):
        said = failed({**environment, "VENV": str(path)})
        assert said == (
            f"msmlp: {path} exists and is not a virtual environment: remove it, or set VENV to another folder\n"
        )
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_half_a_virtual_environment_does_not_stay(environment: dict[str, str], tmp_path: Path) -> None:
    half = tmp_path / "half"
    python = Path(environment["PYTHON"])
    python.write_text(PYTHON + f'case "$*" in *venv*) mkdir -p {half}/bin; cp "$0" {half}/bin; exit 1 ;; esac\n')
    assert "apt install python3-venv" in failed({**environment, "VENV": str(half)})
    assert not half.exists()
