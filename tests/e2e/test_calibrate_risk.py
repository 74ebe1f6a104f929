"""`msmlp calibrate --risk`: into the weights folder, and out of it by `policy`."""

import json
import shutil
from pathlib import Path

import pytest

import msmlp
from tests.processes import Call

pytestmark = pytest.mark.usefixtures("no_graphs")

NAMED = {"fast", "balanced", "accurate"}


@pytest.fixture
def command(tiny_weights: Path, cifar10_folder: Path, tmp_path: Path) -> list[str | Path]:
    """Calibrates a copy."""
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    return ["calibrate", "--weights", folder, "--data", cifar10_folder, "--device", "cpu"]


def test_a_risk_is_a_policy(
    call: Call, capsys: pytest.CaptureFixture[str], command: list[str | Path], digits_folder: Path
) -> None:
    assert call(*command, "--risk", "0.4", "--confidence", "0.8", "--json") == 0
    printed = capsys.readouterr()
    points = {point["name"]: point for point in json.loads(printed.out)["operating_points"]}
    assert NAMED | {"risk-0.4"} <= points.keys()
    ours = points["risk-0.4"]
    assert (ours["risk"], ours["confidence"]) == (0.4, 0.8)
    assert {(point["risk"], point["confidence"]) for name, point in points.items() if name != "risk-0.4"} == {
        (None, None)
    }
    assert min(ours["thresholds"]) < 1
    assert "never exits early" not in printed.err
    with msmlp.load(command[2], device="cpu") as model:
        answer = model(sorted(digits_folder.glob("test/*/*.png"))[:3], policy="risk-0.4")
    assert answer.operating_point.name == "risk-0.4"
    assert list(answer.operating_point.thresholds) == ours["thresholds"]


def test_what_it_promises_is_printed(call: Call, capsys: pytest.CaptureFixture[str], command: list[str | Path]) -> None:
    assert call(*command, "--risk", "0.4") == 0
    printed = capsys.readouterr().out
    assert "\nrisk-0.4: with probability 95 %, at most 40 % of images are lost" in printed
    assert printed.count("\nrisk-0.4 ") == 1


def test_what_cannot_be_certified_never_exits_early_and_says_so(
    call: Call, capsys: pytest.CaptureFixture[str], command: list[str | Path]
) -> None:
    assert call(*command, "--risk", "0.01", "--json") == 0
    printed = capsys.readouterr()
    [point] = [p for p in json.loads(printed.out)["operating_points"] if p["name"] == "risk-0.01"]
    assert (point["thresholds"], point["exit_share"]) == ([1.0, 1.0], [0.0, 0.0, 1.0])
    [said] = [line for line in printed.err.splitlines() if "risk-0.01" in line]
    # log(0.05) / log(0.99), rounded up.
    assert "never exits early" in said
    assert "half of the 40 validation images" in said
    assert "at least 299" in said


def test_what_is_not_certified_promises_nothing(
    call: Call, capsys: pytest.CaptureFixture[str], command: list[str | Path]
) -> None:
    assert call(*command, "--risk", "0.01") == 0
    printed = capsys.readouterr().out
    assert "risk-0.01: no early exit certified; every image runs to the last exit\n" in printed
    assert "with probability" not in printed


def test_calibrating_again_without_a_risk_takes_the_point_away(call: Call, command: list[str | Path]) -> None:
    calibration = Path(command[2]) / "calibration.json"
    for more, wanted in ((["--risk", "0.3"], {"risk-0.3"}), (["--risk", "0.2"], {"risk-0.2"}), ([], set())):
        assert call(*command, *more) == 0
        names = [point["name"] for point in json.loads(calibration.read_text())["operating_points"]]
        assert {name for name in names if name.startswith("risk")} == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--risk", "0"], "--risk: 0 is out of range; expected above 0 and below 1"),
        (["--risk", "1"], "--risk: 1 is out of range"),
        (["--risk", "nan"], "--risk: nan is out of range"),
        (["--risk", "0.1", "--confidence", "1.5"], "--confidence: 1.5 is out of range"),
        (["--confidence", "0.9"], "--confidence: needs --risk"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    call: Call, capsys: pytest.CaptureFixture[str], command: list[str | Path], options: list[str], said: str
) -> None:
    calibration = Path(command[2]) / "calibration.json"
    before = calibration.read_bytes()
    assert call(*command, *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    assert calibration.read_bytes() == before
