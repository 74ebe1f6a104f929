"""`msmlp train` as a command: a mistake is one line and exit status 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

MISTAKES = {
    "bad preset": ({"--preset": "huge"}, "unknown preset 'huge'; expected one of "),
    "bad --set": ({"--set": "depth=3"}, "--set: unknown field 'depth'; expected one of "),
    "a rate no float32 holds": ({"--set": "lr=1e39"}, "lr: expected at most "),
    "bad number": ({"--epochs": "many"}, "Invalid value for '--epochs': expected a valid integer"),
    "a teacher that is not there": ({"--teacher": "no-such-folder"}, "there is no weights folder no-such-folder"),
    "missing data": ({"--data": "no-such-folder"}, "no-such-folder does not exist"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    name: str, call: Callable[..., int], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changes, said = MISTAKES[name]
    options = {"--data": str(tmp_path), "--preset": "tiny", "--out": str(tmp_path / "out"), **changes}
    assert call("train", *[word for pair in options.items() for word in pair]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("msmlp: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()
