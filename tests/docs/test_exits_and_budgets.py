"""docs/exits-and-budgets.md has the shipped weights' own figures, and its commands get what it says."""

import json
import re
from collections.abc import Callable

import pytest

from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS
from scripts.exits_page import PAGE, filled
from tests.docs.test_http import documents
from tests.docs.test_readme import ROOT

TEXT = PAGE.read_text()


def test_the_figures_are_the_calibrations() -> None:
    assert filled(TEXT) == TEXT, "the calibration has changed: make docs"


def test_every_operating_point_has_its_line() -> None:
    """By hand, not by the script that wrote them."""
    points = json.loads((DEFAULT_WEIGHTS / "calibration.json").read_text())["operating_points"]
    for point in points:
        [line] = re.findall(rf"^\| `{point['name']}` \| [\d., ]+ \|.*\|$", TEXT, flags=re.MULTILINE)
        assert f"| {100 * point['expected_accuracy']:.2f}% ± {100 * point['standard_error']:.2f} |" in line
        assert f"| {point['mean_gflops']:.4f} |" in line


def test_another_calibration_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = load_calibration(load_weights(DEFAULT_WEIGHTS))
    first, *more = calibration.points
    calibration.points = (first.model_copy(update={"expected_accuracy": 0.5}), *more)
    monkeypatch.setattr("scripts.exits_page.load_calibration", lambda weights: calibration)
    assert filled(TEXT) != TEXT


def test_the_commands_get_what_the_page_says(run: Callable[[str], str]) -> None:
    everything, own = [documents(run(block))[0] for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)]
    [result] = everything["results"]
    assert (result["exit"], [stage["stage"] for stage in result["stages"]]) == (3, [1, 2, 3])
    assert own["operating_point"]["thresholds"] == [0.9, 0.8]
    line = re.search(r"^\| `thresholds=0.9,0.8` \|.*\| ([\d.]+)% \| ([\d.]+) \|$", TEXT, flags=re.MULTILINE)
    assert line
    assert own["operating_point"]["expected_accuracy"] == pytest.approx(float(line[1]) / 100, abs=1e-4)
    assert own["operating_point"]["expected_gflops"] == pytest.approx(float(line[2]), abs=1e-4)


def test_every_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
