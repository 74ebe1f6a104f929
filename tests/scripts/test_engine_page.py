"""The page on the engine: what is in the documents stands on it, and nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from scripts.engine_goals import goals
from scripts.engine_page import ROOT, page

CAP = {
    "max_batch": 64,
    "plain_images_per_second": 1000.0,
    "bound_images_per_second": 1100.0,
    "bound_over_plain": 1.1,
    "engine_images_per_second": 1067.0,
    "efficiency": 0.97,
    "baselines": {"full": 400.0, "masked": 410.0, "shrinking": 900.0},
    "engine_over": {"full": 2.61, "masked": 2.5, "shrinking": 1.17},
    "predicted_over": {"full": 2.7, "masked": 2.6, "shrinking": 1.2},
    "measured_over_predicted": {"full": 0.967, "masked": 0.96, "shrinking": 0.975},
    "seconds_over_stage_seconds": {"engine": 1.03, "full": 1.0, "masked": 1.01, "shrinking": 1.02},
    "mean_batch": {"engine": [64.0, 60.0, 20.0], "shrinking": [64.0, 30.0, 2.0]},
}
ROW = {
    "load": 0.8,
    "offered": 800.0,
    "achieved": 799.0,
    "p50_ms": 10.0,
    "p95_ms": 20.0,
    "p99_ms": 30.0,
    "slowdown": {"mean": 1.0, "p50": 0.9, "p99": 2.8},
    "ideal": {"p50_slowdown": 0.8, "p99_slowdown": 2.0, "p99_service_over_ideal": 1.4},
    "queue_ms": {"mean": 5.0, "p50": 4.0, "p99": 15.0},
    "mean_batch": [30.0, 10.0, 2.0],
    "mean_gflops": 0.0058,
    "degraded": 0.0,
    "late": 0.0,
    "shed": 0.0,
    "shed_before_top_level": None,
    "cpu_cores": {"generator": 0.01, "front": 0.2, "process": 1.2, "of": 2},
}
RUN: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "torch": "2.13.0",
    "threads": 1,
    "images": 2048,
    "rounds": 5,
    "policy": "balanced",
    "exit_share": [0.5, 0.4, 0.1],
    "caps": [CAP],
    "host": {
        "scheduler_us_per_image_and_stage": {"1024": 0.2, "256": 0.4},
        "scheduler_us_single_ticket": 59.0,
        "facade_us_single_image": 240.0,
        "facade_us_first_exit": 140.0,
    },
    "load": [ROW, {**ROW, "load": 1.5, "shed": 0.2, "shed_before_top_level": 0.0}],
    "load_max_batch": 64,
    "load_engine": "auto",
    "load_capacity_images_per_second": 1000.0,
    "load_seconds": 10.0,
    "unloaded_ms": {"1": 3.0, "64": 30.0},
}
SOAK = {
    "minutes": 10.0,
    "load": 0.8,
    "requests": 5000,
    "images_per_second": 800.0,
    "statuses": {"200": 4999, "429": 1},
    "p50_ms": 20.0,
    "p99_ms": 90.0,
    "memory": {"settled_mib": 400.0, "last_mib": 401.0, "slope_mib_per_minute": 0.1},
    "at_the_end": {"inflight": 0.0},
    "faults": [],
    "ok": True,
}


def changed(**paths: Any) -> dict[str, Any]:
    """RUN with other values, named by their path: caps__0__efficiency."""
    run = copy.deepcopy(RUN)
    for path, value in paths.items():
        *way, last = path.split("__")
        at: Any = run
        for name in way:
            at = at[int(name)] if name.isdigit() else at[name]
        at[last] = value
    return run


def test_every_goal_can_be_held() -> None:
    assert {verdict for _, _, verdict in goals(RUN)} == {"held"}


@pytest.mark.parametrize(
    "change",
    [
        {"caps__0__bound_over_plain": 0.89},
        {"caps__0__efficiency": 0.949},
        {"caps__0__measured_over_predicted__full": 0.89},
        {"caps__0__measured_over_predicted__shrinking": 1.06},
        {"host__scheduler_us_single_ticket": 61.0},
        {"host__facade_us_single_image": 251.0},
        {"host__facade_us_first_exit": 251.0},
        {"load__0__ideal__p99_service_over_ideal": 1.6},
        {"load__1__late": 0.01},
        {"load__1__shed_before_top_level": 0.1},
    ],
)
def test_every_goal_can_be_missed(change: dict[str, Any]) -> None:
    assert [verdict for _, _, verdict in goals(changed(**change))].count("missed") == 1


def test_on_a_gpu_the_slowdown_itself_is_the_goal() -> None:
    run = changed(device="cuda", load__0__ideal__p99_service_over_ideal=9.0)
    assert {verdict for _, _, verdict in goals(run)} == {"held"}
    run["load"][0]["slowdown"]["p99"] = 3.1
    assert "missed" in {verdict for _, _, verdict in goals(run)}


def test_the_page_shows_every_run_and_soak(tmp_path: Path) -> None:
    (tmp_path / "some.bench.json").write_text(json.dumps(RUN))
    (tmp_path / "some.soak.json").write_text(json.dumps(SOAK))
    text = page(tmp_path)
    assert "## `some.bench.json` on cpu" in text
    assert "| 64 | 1000 | 1100 | 1067 | 400 | 410 | 900 |" in text
    assert "| 64 | 2.61 / 2.70 | 2.50 / 2.60 | 1.17 / 1.20 |" in text
    assert "4999 answered 200, 1 answered 429" in text
    assert "needs a GPU" in text
    (tmp_path / "some.bench-cuda.json").write_text(json.dumps(changed(device="cuda")))
    assert "needs a GPU" not in page(tmp_path)


def test_what_was_not_measured_is_not_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "old.bench.json").write_text("{}")
    assert "| goal |" not in page(tmp_path)
    assert "images/s at saturation:" not in page(tmp_path)


def test_the_page_in_the_repository_is_the_generated_one() -> None:
    assert (ROOT / "benchmarks" / "engine.md").read_text() == page()
