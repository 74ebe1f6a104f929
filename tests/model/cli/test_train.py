"""`msmlp train` as a command: a mistake is one line and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

MSMLP = Path(sys.executable).with_name("msmlp")

MISTAKES = {
    "bad preset": ({"--preset": "huge"}, "unknown preset 'huge'; expected one of "),
    "bad --set": ({"--set": "depth=3"}, "--set: unknown field 'depth'; expected one of "),
    "a rate no float32 holds": ({"--set": "lr=1e39"}, "lr: Input should be less than or equal to "),
    "bad number": ({"--epochs": "many"}, "Invalid value for '--epochs': Input should be a valid integer"),
    "a teacher that is not there": ({"--teacher": "no-such-folder"}, "there is no weights folder no-such-folder"),
    "missing data": ({"--data": "no-such-folder"}, "no-such-folder does not exist"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of every mistake; started together, as each spends its time importing."""
    root = tmp_path_factory.mktemp("mistakes")
    started = {}
    for name, (changes, _) in MISTAKES.items():
        options = {"--data": str(root), "--preset": "tiny", "--out": str(root / "out"), **changes}
        words = [word for pair in options.items() for word in pair]
        started[name] = subprocess.Popen(
            [MSMLP, "train", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    said = {name: process.communicate() for name, process in started.items()}
    assert not (root / "out").exists()
    return {name: (started[name].returncode, *words) for name, words in said.items()}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(name: str, answers: dict[str, tuple[int, str, str]]) -> None:
    status, out, err = answers[name]
    assert status == 2
    assert out == ""
    assert err.startswith("msmlp: ")
    assert err.count("\n") == 1
    assert MISTAKES[name][1] in err
