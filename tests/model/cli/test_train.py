"""`msmlp train` as a command: its last lines; a mistake is one line and exit status 2."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("preset", ["tiny", "teacher-tiny"])
def test_training_ends_with_what_the_promises_are_worth(
    preset: str, call: Callable[..., int], capfd: pytest.CaptureFixture[str], audited_digits: Path, tmp_path: Path
) -> None:
    options = ("--data", audited_digits, "--preset", preset, "--epochs", 0, "--image-size", 16, "--out", tmp_path)
    assert call("train", *map(str, options)) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "exit 1: " in lines[0]
    assert re.search(r": \d+\.\d\d % ± [2-5]\.\d\d of 100 validation images$", lines[0])
    assert any(re.match(r"accurate +\d+\.\d\d % ± [2-5]\.\d\d ", line) for line in lines) == (preset == "tiny")
    at = lines.index("100 audit images, which chose nothing: expected minus reached accuracy ± s.e., in points")
    assert re.match(r"exit 1 [+-]\d+\.\d\d ± \d+\.\d\d", lines[at + 1])
    assert ("balanced " in lines[at + 2]) == (preset == "tiny")


def test_evaluate_and_info_say_it_too(
    call: Callable[..., int], capfd: pytest.CaptureFixture[str], audited_weights: Path, audited_digits: Path
) -> None:
    said = "100 audit images, which chose nothing"
    for split in ("val", "test", "audit"):
        options = ("--weights", audited_weights, "--data", audited_digits, "--split", split)
        assert call("evaluate", *map(str, options)) == 0
        out = capfd.readouterr().out
        assert out.count(said) == 1
        assert ("expected - reached ± s.e." in out) == (split != "val")
    assert call("info", "--weights", str(audited_weights)) == 0
    assert said in capfd.readouterr().out


@pytest.mark.usefixtures("no_graphs")
def test_the_doubt_about_initial_weights_stays_in_every_report(
    call: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    audited_weights: Path,
    audited_digits: Path,
    tmp_path: Path,
) -> None:
    options = ("--data", audited_digits, "--preset", "tiny", "--epochs", 0, "--set", "image_size=16", "--seed", 1)
    assert call("train", *map(str, options), "--init", str(audited_weights), "--out", str(tmp_path)) == 0
    out, err = capfd.readouterr()
    doubt = "audited was trained with other validation images, so it may have seen images held out here"
    assert f"warning: init: {doubt}" in err
    assert f"warning: {doubt}" in out
    assert call("info", "--weights", str(tmp_path)) == 0
    assert f"warning: {doubt}" in capfd.readouterr().out


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
