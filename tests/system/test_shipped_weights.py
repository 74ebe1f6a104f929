"""The shipped weights on CIFAR-10's test images: what the documents say, what HTTP answers, what evaluate says."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.data import load_dataset
from msmlp.model.weights import load_calibration, load_weights

pytestmark = pytest.mark.system

MSMLP = Path(sys.executable).with_name("msmlp")


@pytest.fixture(scope="module")
def evaluated(shipped: Path, cifar10: Path) -> dict[str, object]:
    command = [MSMLP, "evaluate", "--weights", shipped, "--data", cifar10, "--split", "test", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_they_are_a_cheap_cascade_of_three_stages_that_learned(shipped: Path, evaluated: dict) -> None:
    manifest = load_weights(shipped).manifest
    first, second, third = (stage.patch for stage in manifest.cascade.stages)
    assert first > second > third
    assert manifest.gflops_cumulative[-1] <= 0.03
    assert evaluated["images"] == 5000
    one, two, three = (row["accuracy"] for row in evaluated["exits"])
    assert 0.65 < one < two < three
    assert three > 0.85


@pytest.mark.usefixtures("no_graphs")
def test_calibrating_again_gives_the_shipped_calibration(shipped: Path, cifar10: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shipped, tmp_path / "cifar10-s"))
    calibrate(copy, cifar10, "cpu")
    before, after = load_calibration(load_weights(shipped)), load_calibration(load_weights(copy))
    assert [p.name for p in before.points] == [p.name for p in after.points]
    assert np.allclose([p.thresholds for p in before.points], [p.thresholds for p in after.points], rtol=0, atol=1e-4)


def test_their_validation_images_are_still_drawn_and_5000_others_for_the_audit(shipped: Path, cifar10: Path) -> None:
    parts = load_dataset(cifar10, 32).partition(seed=0)
    assert parts.digests[0] == load_weights(shipped).manifest.training["validation"]["digest"]
    assert parts.audit is not None
    assert (len(parts.training), len(parts.validation)) == (40000, 5000)
    assert np.bincount(parts.audit.labels).tolist() == [500] * 10
    sets = [{identity.tobytes() for identity in part.identities} for part in (parts.validation, parts.audit)]
    assert not sets[0] & sets[1]


def test_test_images_over_http_give_what_evaluate_says(
    cifar10: Path, evaluated: dict, serve_shipped: httpx.Client
) -> None:
    test = load_dataset(cifar10, 32).test
    assert test is not None
    labels: list[int] = []
    exits: list[int] = []
    for start in range(0, len(test), 250):
        files = [("images", (f"{i}.png", _png(test.pixels[i]))) for i in range(start, start + 250)]
        answer = serve_shipped.post("/classify", files=files, params={"policy": "balanced"})
        assert answer.status_code == 200, answer.text[:300]
        labels += [row["class_id"] for row in answer.json()["results"]]
        exits += [row["exit"] for row in answer.json()["results"]]
    point = next(p for p in evaluated["operating_points"] if p["name"] == "balanced")
    accuracy = float((np.array(labels) == test.labels).mean())
    share = np.bincount(np.array(exits) - 1, minlength=3) / len(exits)
    # An image in the band of rounding around its threshold may take the other exit: allow for two.
    assert accuracy == pytest.approx(point["accuracy"], abs=2 / len(test))
    assert share == pytest.approx(point["exit_share"], abs=2 / len(test))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
