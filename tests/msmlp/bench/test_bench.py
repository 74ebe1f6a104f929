"""`msmlp bench`: the documents the contract promises, from real runs at small size; no number is judged here."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.errors import OptionError
from model.exits import exit_of
from msmlp.bench.engine import LOADS, BenchOptions, bench_engine
from msmlp.bench.http import UnreachableError, bench_http
from msmlp.bench.images import pick_images
from msmlp.bench.strategies import ReplayBackend, Saturated
from service.settings import Settings
from service.state import build_service
from tests.e2e.conftest import Call
from tests.servers import serving


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


def test_over_http_every_request_is_counted(tiny_weights: Path, cat_photo: bytes) -> None:
    with serving(build_service(Settings(weights=tiny_weights, device="cpu"))) as client:
        result = bench_http(str(client.base_url), [cat_photo, b"no picture"], connections=(1, 4), seconds=0.3)
        counted = metric(client, 'msmlp_requests_total{route="/classify",status="200"}')
    assert [row["connections"] for row in result["load"]] == [1, 4]
    assert {status for row in result["load"] for status in row["statuses"]} == {"200", "422"}
    assert sum(row["statuses"]["200"] for row in result["load"]) == counted
    assert all(sum(row["exit_share"].values()) == pytest.approx(1, abs=1e-3) for row in result["load"])


def test_where_nothing_went_well_there_is_no_latency_but_json(
    tiny_weights: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    with serving(build_service(Settings(weights=tiny_weights, device="cpu"))) as client:
        words = ("bench", "http", text, "--url", str(client.base_url), "--connections", "1", "--seconds", "0.1")
        assert call(*words, "--json") == 0
        [row] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["load"]
        assert call(*words) == 0
        assert "p50 -, p95 -, p99 -, statuses {'422': " in capsys.readouterr().out
    assert [row[name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [None] * 3
    assert row["statuses"].keys() == {"422"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--connections", "\xb2"], "'\xb2' is no list of numbers 1 to 1024"),
        (["--connections", "1,0"], "'1,0' is no list of numbers 1 to 1024"),
        (["--url", "http://[::1"], "'http://[::1' is no address of a service"),
        (["--url", "foo"], "'foo' is no address of a service"),
    ],
)
def test_a_mistake_is_one_line(call: Call, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert call("bench", "http", *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def metric(client: httpx.Client, name: str) -> float:
    return next(float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name))


def test_a_service_that_is_not_there_is_said_to_be_so(cat_photo: bytes) -> None:
    with pytest.raises(UnreachableError, match="nothing answers at http"):
        bench_http("http://127.0.0.1:9", [cat_photo], connections=(1,), seconds=0.1)
