"""`msmlp bench`: the documents the contract promises, from real runs at small size; no number is judged here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import OptionError
from model.exits import exit_of
from msmlp.bench.engine import LOADS, BenchOptions, bench_engine
from msmlp.bench.images import pick_images
from msmlp.bench.strategies import ReplayBackend, Saturated


@pytest.fixture(scope="module")
def result(tiny_weights: Path, digits_folder: Path) -> dict[str, Any]:
    options = BenchOptions(
        tiny_weights, data=digits_folder, images=64, rounds=2, max_batch=16, device="cpu", load_seconds=0.2
    )
    return bench_engine(options)


def test_the_engine_document_has_what_the_contract_names(result: dict[str, Any]) -> None:
    assert result["device"] == "cpu"
    for name in ("plain", "bound", "engine"):
        assert result[f"{name}_images_per_second"] > 0
    assert result["efficiency"] == pytest.approx(result["engine_images_per_second"] / result["bound_images_per_second"])
    assert {"full", "masked", "shrinking"} <= result["baselines"].keys()
    assert all(speed > 0 for speed in result["baselines"].values())
    assert result["host_us_per_image"] > 0
    assert sum(result["exit_share"]) == pytest.approx(1, abs=1e-3)
    json.dumps(result)


def test_every_offered_load_is_accounted_for(result: dict[str, Any]) -> None:
    assert [row["load"] for row in result["load"]] == list(LOADS)
    wanted = {"offered", "achieved", "p50_ms", "p95_ms", "p99_ms", "mean_gflops", "degraded", "shed"}
    for row in result["load"]:
        assert wanted <= row.keys()
        assert 0 <= row["achieved"] <= row["offered"]
        assert 0 <= row["shed"] <= 1
        assert 0 <= row["degraded"] <= 1
        if row["achieved"]:
            assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_the_picture_is_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    from msmlp.bench.plot import draw_engine

    draw_engine(result, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.width > picture.height > 100


def test_an_unknown_operating_point_is_named(tiny_weights: Path) -> None:
    with pytest.raises(OptionError, match="'best' is no operating point; there are"):
        bench_engine(BenchOptions(tiny_weights, policy="best"))


def test_without_a_device_the_engine_makes_the_very_decisions_that_calibration_makes() -> None:
    scores = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    thresholds = np.array([0.6, 0.4])
    exits = Saturated(ReplayBackend(scores, 16)).run(np.zeros((200, 1, 1, 3), dtype=np.uint8), thresholds)
    assert np.bincount(exits).tolist() == np.bincount(exit_of(scores, thresholds)).tolist()


def test_without_data_images_are_cut_from_a_photograph() -> None:
    images = pick_images(None, 5, 32)
    assert images.shape == (5, 32, 32, 3)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5
