"""`msmlp bench`: its documents, from real runs at small size; no number is judged here."""

import json
from pathlib import Path
from typing import Any

import pytest

from msmlp.bench.engine import BenchOptions, bench_engine, engine_lines
from msmlp.model.errors import OptionError
from msmlp.service.settings import Settings
from tests.processes import Call


@pytest.fixture(scope="module")
def result(tiny_weights: Path, digits_folder: Path) -> dict[str, Any]:
    told: list[str] = []
    settings = Settings(weights=tiny_weights, backend="torch", device="cpu", engine="thread")
    options = BenchOptions(
        settings, data=digits_folder, images=48, rounds=1, caps=(16, 4), load_seconds=0.2, loads=(0.5, 4.0)
    )
    document = bench_engine(options, told.append)
    assert "round 1 of 1, batches up to 4" in told
    return document


def test_the_engine_document_has_what_the_contract_names(result: dict[str, Any]) -> None:
    assert result["device"] == "cpu"
    for name in ("plain", "bound", "engine"):
        assert result[f"{name}_images_per_second"] > 0
    assert result["efficiency"] == pytest.approx(result["engine_images_per_second"] / result["bound_images_per_second"])
    assert {"full", "masked", "shrinking"} <= result["baselines"].keys()
    assert all(speed > 0 for speed in result["baselines"].values())
    assert result["host_us_per_image"] > 0
    assert sum(result["exit_share"]) == pytest.approx(1, abs=1e-3)
    json.dumps(result, allow_nan=False)


def test_every_cap_is_measured_and_the_first_one_described(result: dict[str, Any]) -> None:
    assert [cap["max_batch"] for cap in result["caps"]] == [16, 4]
    described = result["caps"][0]
    assert {name: result[name] for name in described} == described
    for cap in result["caps"]:
        for name, speed in cap["baselines"].items():  # of one round
            assert cap["engine_over"][name] == pytest.approx(cap["engine_images_per_second"] / speed)
        assert all(size <= cap["max_batch"] for sizes in cap["mean_batch"].values() for size in sizes)
        assert cap["mean_batch"]["masked"] == [cap["max_batch"]] * 3


def test_the_hosts_own_work_is_timed(result: dict[str, Any]) -> None:
    scheduler = result["host"]["scheduler_us_per_image_and_stage"]
    assert scheduler.keys() == {"1", "256", "1024"}
    assert all(us > 0 for us in scheduler.values())


def test_the_document_is_said_in_lines(result: dict[str, Any]) -> None:
    said = "\n".join(engine_lines(result))
    assert f"engine / bound {result['efficiency']:.3f}" in said
    assert "load 400 %: " in said


def test_every_offered_load_is_accounted_for(result: dict[str, Any]) -> None:
    assert [row["load"] for row in result["load"]] == [0.5, 4.0]
    wanted = {"offered", "achieved", "p50_ms", "p95_ms", "p99_ms", "mean_gflops", "degraded", "shed"}
    for row in result["load"]:
        assert wanted <= row.keys()
        assert 0 <= row["achieved"] <= row["offered"]
        assert 0 <= row["shed"] <= 1
        assert 0 <= row["degraded"] <= 1
        if row["achieved"]:
            assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_an_unknown_operating_point_is_named(tiny_weights: Path) -> None:
    with pytest.raises(OptionError, match="'best' is not an operating point; expected one of"):
        bench_engine(BenchOptions(Settings(weights=tiny_weights, policy="best")))


@pytest.mark.parametrize("caps", ["16,0", "16;64", "", "5000"])
def test_caps_that_are_no_numbers_are_one_line(call: Call, capsys: pytest.CaptureFixture[str], caps: str) -> None:
    assert call("bench", "engine", "--max-batch", caps) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{caps!r} is not valid; expected numbers from 1 to 4096" in line
