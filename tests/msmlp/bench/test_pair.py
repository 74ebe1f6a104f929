"""`msmlp bench pair`: two real networks in one run; no speed is judged here."""

import json
from pathlib import Path
from typing import Any

import pytest

from msmlp.bench.pair import PairOptions, bench_pair, pair_lines
from msmlp.model.training.trainer import TrainOptions, train
from msmlp.model.weights import load_calibration, load_weights
from tests.e2e.conftest import Call


@pytest.fixture(scope="module")
def pair(tiny_weights: Path, digits_folder: Path) -> dict[str, Any]:
    """A network against itself."""
    told: list[str] = []
    options = PairOptions(tiny_weights, tiny_weights, digits_folder, images=48, rounds=3, max_batch=4, device="cpu")
    document = bench_pair(options, told.append)
    assert len(told) == 4
    return document


def test_both_are_measured_on_the_same_images(pair: dict[str, Any]) -> None:
    for row in (pair["network"], pair["against"]):
        assert row["images_per_second"] > 0
        assert sum(row["exit_share"]) == pytest.approx(1, abs=1e-3)
    assert len(pair["speedup_of_rounds"]) == 3
    assert min(pair["speedup_of_rounds"]) <= pair["speedup"] <= max(pair["speedup_of_rounds"])
    json.dumps(pair, allow_nan=False)


def test_the_point_is_the_cheapest_that_is_as_accurate(pair: dict[str, Any], tiny_weights: Path) -> None:
    points = load_calibration(load_weights(tiny_weights)).points
    theirs = max(point.expected_accuracy for point in points)
    cheapest = min(point.mean_gflops for point in points if point.expected_accuracy >= theirs)
    assert pair["network"]["mean_gflops"] == cheapest
    assert pair["against"]["expected_accuracy"] == theirs
    assert pair["chosen"] == "as accurate"
    assert pair["gflops_saved"] == pytest.approx(pair["against"]["mean_gflops"] / cheapest)


def test_it_is_said_in_lines(pair: dict[str, Any]) -> None:
    said = "\n".join(pair_lines(pair))
    assert f"{pair['speedup']:.2f} times the images/s" in said


def test_a_cascade_that_is_never_as_accurate_is_told_so(
    tiny_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    untrained = train(TrainOptions(digits_folder, "tiny", tmp_path / "untrained", epochs=0, device="cpu"))
    pair = bench_pair(PairOptions(untrained, tiny_weights, images=4, rounds=1, device="cpu"))
    points = load_calibration(load_weights(untrained)).points
    assert pair["chosen"] == "less accurate"
    assert pair["network"]["expected_accuracy"] == max(point.expected_accuracy for point in points)
    assert pair_lines(pair)[0] == "no point is expected to be as accurate: this is the best"
    named = bench_pair(PairOptions(untrained, tiny_weights, images=4, rounds=1, policy="fast", device="cpu"))
    assert (named["chosen"], named["network"]["policy"]) == ("named", "fast")


def test_an_unknown_operating_point_is_one_line(
    tiny_weights: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_weights)
    assert call("bench", "pair", "--weights", folder, "--against", folder, "--policy", "best", "--images", "4") == 2
    assert "'best' is not an operating point; there are" in capsys.readouterr().err.splitlines()[-1]
