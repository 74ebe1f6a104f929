"""docs/exits-and-budgets.md: the default weights answer its requests with the figures it states."""

import json
import re
from collections.abc import Callable

import pytest

from msmlp.model.weights import load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.docs.test_http import documents
from tests.docs.test_readme import ROOT

TEXT = (ROOT / "docs" / "exits-and-budgets.md").read_text()
REQUESTS = re.findall(r"^\| (\(nothing\)|`.*?=.*?`) \| (\S+) \| ([\d.]+) % \| ([\d.]+) \|$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize(("options", "name", "accuracy", "gflops"), REQUESTS)
def test_a_request_gets_the_operating_point_of_its_row(
    options: str, name: str, accuracy: str, gflops: str, run: Callable[[str], str]
) -> None:
    fields = " ".join(f"-F {option}" for option in re.findall(r"`(.+?)`", options))
    [answer] = documents(run(f"curl -s -F images=@examples/cat.jpg {fields} localhost:8000/classify"))
    point = answer["operating_point"]
    assert point["name"] == (None if name == "none" else name.strip("`"))
    assert f"{100 * point['expected_accuracy']:.2f}" == accuracy
    assert f"{point['expected_gflops']:.4f}" == gflops


def test_every_kind_of_choice_has_an_example() -> None:
    options = {name for row in REQUESTS for name in re.findall(r"`(\w+)=", row[0])}
    assert options >= {"policy", "budget_gflops", "min_accuracy", "thresholds", "max_exit"}


def test_the_costs_of_the_exits_are_the_weights() -> None:
    *first, last = (f"{cost:.4f}" for cost in load_weights(DEFAULT_WEIGHTS).manifest.gflops_cumulative)
    assert f"{', '.join(first)} and {last} GFLOPs per image" in " ".join(TEXT.split())


def test_the_number_of_validation_images_is_the_calibrations() -> None:
    calibration = json.loads((DEFAULT_WEIGHTS / "calibration.json").read_text())
    assert f"{calibration['images']:,} validation images" in TEXT


def test_the_commands_get_what_the_page_says(run: Callable[[str], str]) -> None:
    everything, own = [documents(run(block))[0] for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)]
    [result] = everything["results"]
    assert (result["exit"], [stage["stage"] for stage in result["stages"]]) == (3, [1, 2, 3])
    assert own["operating_point"]["thresholds"] == [0.9, 0.8]
