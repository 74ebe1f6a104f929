import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.errors import WeightsError
from msmlp.model.weights import describe, load_calibration, load_graphs, load_weights, model_version
from msmlp.model.weights.calibration import Table


@pytest.fixture
def own_weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_calibration_says_what_to_do(own_weights: Path) -> None:
    (own_weights / "calibration.json").unlink()
    with pytest.raises(WeightsError, match="not calibrated; run msmlp calibrate"):
        load_calibration(load_weights(own_weights))


@pytest.mark.parametrize(("right", "images"), [(12, 12), (0, 12), (9, 12), (4000, 5000)])
def test_the_accuracy_is_the_share_and_its_standard_error_never_nothing(right: int, images: int) -> None:
    correct = (np.arange(images) < right)[:, None]
    got = Table(np.ones((images, 1), np.float32), correct, np.array([0.1])).expect([])
    assert got.accuracy == right / images
    assert got.standard_error > 0
    # The spread of the rate given these images, when every rate was as likely before.
    rates = np.random.default_rng(0).beta(right + 1, images - right + 1, 200_000)
    assert got.standard_error == pytest.approx(rates.std(), rel=0.05)


def test_a_calibration_of_other_weights_is_refused(own_weights: Path) -> None:
    rewrite(own_weights, model_sha256="0" * 64)
    with pytest.raises(WeightsError, match="made for other weights"):
        load_calibration(load_weights(own_weights))


def test_a_missing_or_damaged_table_is_refused(own_weights: Path) -> None:
    weights, table = load_weights(own_weights), own_weights / "calibration.safetensors"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    with pytest.raises(WeightsError, match=r"calibration\.safetensors is damaged"):
        load_calibration(weights)
    table.unlink()
    with pytest.raises(WeightsError, match=r"calibration\.safetensors is missing"):
        load_calibration(weights)


def test_a_table_that_is_not_listed_is_refused(own_weights: Path) -> None:
    rewrite(own_weights, files={})
    with pytest.raises(WeightsError, match="does not list it"):
        load_calibration(load_weights(own_weights))


def hash_again(folder: Path, table: bytes) -> None:
    """Put in a table whose hash is right: its content alone is wrong."""
    (folder / "calibration.safetensors").write_bytes(table)
    rewrite(folder, files={"calibration.safetensors": hashlib.sha256(table).hexdigest()})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"not a table", "not a calibration table"),
        (save({"scores": np.zeros((40, 3), np.float32)}), "not a calibration table"),
        (save({"scores": np.zeros((40, 2), np.float32), "correct": np.zeros((40, 2), np.uint8)}), r"shape \(40, 2\)"),
        (save({"scores": np.zeros((40, 3), np.float32), "correct": np.zeros((39, 3), np.uint8)}), "shape"),
        (save({"scores": np.full((40, 3), np.nan, np.float32), "correct": np.zeros((40, 3), np.uint8)}), "NaN"),
    ],
    ids=["bytes", "no correctness", "too few exits", "unequal", "nan"],
)
def test_a_table_that_is_none_is_refused(own_weights: Path, table: bytes, message: str) -> None:
    hash_again(own_weights, table)
    with pytest.raises(WeightsError, match=message):
        load_calibration(load_weights(own_weights))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"exit_policy": "oracle"},
        {"exit_policy": None},
        {"exit_policy_parameters": {"weights": [1.0]}},
        {"operating_points": []},
        {"operating_points": [{"name": "fast"}]},
        {"temperatures": [1.0, 1.0]},
        {"temperatures": [1.0, 0.0, 1.0]},
        {"temperatures": [1.0, float("nan"), 1.0]},
        {"temperatures": [1.0, float("inf"), 1.0]},
        {"stage_ms": [0.1, 0.2]},
        {"stage_ms": [0.1, 0.2, float("nan")]},
        {"cost": "euros"},
        {"images": "many"},
    ],
    ids=lambda change: "-".join(f"{k}" for k in change),
)
def test_a_calibration_that_does_not_fit_is_refused(own_weights: Path, changes: dict[str, object]) -> None:
    rewrite(own_weights, **changes)
    with pytest.raises(WeightsError, match=r"calibration\.json") as caught:
        load_calibration(load_weights(own_weights))
    assert next(iter(changes)) in str(caught.value).replace(" ", "_")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [("gate", {"coefficients": [[0.0] * 4, [0.0] * 6]}), ("ensemble", {"weights": [[1.0, 0.0], [1.0, 0.0]]})],
)
def test_a_removed_exit_policy_names_the_command_that_mends_it(
    own_weights: Path, policy: str, parameters: dict[str, object]
) -> None:
    rewrite(own_weights, exit_policy=policy, exit_policy_parameters=parameters)
    said = (
        f"{own_weights}: calibration uses the exit policy '{policy}', removed in 0.2; "
        f"run msmlp calibrate --weights {own_weights} --data DATA"
    )
    with pytest.raises(WeightsError) as caught:
        load_calibration(load_weights(own_weights))
    assert str(caught.value) == said


def test_calibrating_again_mends_a_removed_exit_policy(own_weights: Path, cifar10_folder: Path) -> None:
    rewrite(own_weights, exit_policy="gate", exit_policy_parameters={"coefficients": []})
    calibrate(own_weights, cifar10_folder, "cpu")
    weights = load_weights(own_weights)
    calibration = load_calibration(weights)
    assert calibration.file.exit_policy == "max-probability"
    assert len(load_graphs(weights, calibration)) == 3


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 0.5], [0.5, 1.5], [-0.1, 0.5]])
def test_an_operating_point_with_impossible_thresholds_is_refused(own_weights: Path, thresholds: list[float]) -> None:
    points = json.loads((own_weights / "calibration.json").read_text())["operating_points"]
    points[0]["thresholds"] = thresholds
    rewrite(own_weights, operating_points=points)
    with pytest.raises(WeightsError, match="thresholds"):
        load_calibration(load_weights(own_weights))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_calibration_that_is_not_json_is_refused_in_one_line(own_weights: Path, content: bytes) -> None:
    (own_weights / "calibration.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"calibration\.json") as caught:
        load_calibration(load_weights(own_weights))
    assert "\n" not in str(caught.value)


def test_an_operating_point_that_expects_nan_is_refused(own_weights: Path) -> None:
    points = json.loads((own_weights / "calibration.json").read_text())["operating_points"]
    points[0]["expected_accuracy"] = float("nan")
    rewrite(own_weights, operating_points=points)
    with pytest.raises(WeightsError, match=r"operating_points\.0\.expected_accuracy"):
        load_calibration(load_weights(own_weights))


LATER = ("exit_policy_parameters", "cost", "stage_ms", "stage_ms_batch_size", "dtype")
"""Fields of calibration.json that the first files of this format did not have."""


def test_a_calibration_of_an_older_minor_version_loads(own_weights: Path) -> None:
    path = own_weights / "calibration.json"
    older = json.loads(path.read_text())
    for name in LATER:
        del older[name]
    for point in older["operating_points"]:
        del point["mean_ms"]
    path.write_text(json.dumps({**older, "temperatures": [1.0, 1.0, 1.0]}))
    weights = load_weights(own_weights)
    calibration = load_calibration(weights)
    assert calibration.file.exit_policy == "max-probability"
    assert calibration.file.stage_ms is None
    assert all(point.mean_ms is None for point in calibration.points)
    assert sum(calibration.expect(calibration.points[0].thresholds).exit_share) == pytest.approx(1)
    document = describe(weights, calibration)
    assert document["exit_policy"] == "max-probability"
    assert json.loads(json.dumps(document)) == document


def test_a_calibration_of_a_newer_minor_version_loads(own_weights: Path) -> None:
    points = json.loads((own_weights / "calibration.json").read_text())["operating_points"]
    rewrite(own_weights, weather="fine", operating_points=[{**point, "mean_joules": 1.0} for point in points])
    assert [p.name for p in load_calibration(load_weights(own_weights)).points] == [p["name"] for p in points]


def test_the_version_names_model_and_calibration(own_weights: Path) -> None:
    weights = load_weights(own_weights)
    before = model_version(weights, load_calibration(weights))
    assert model_version(weights, load_calibration(weights)) == before
    rewrite(own_weights, device="another")
    assert model_version(weights, load_calibration(weights)) != before


@pytest.mark.parametrize(("device", "told"), [("cpu", (1.0, 2.0, 3.0)), ("cuda:0", None)])
def test_the_times_of_a_gpu_are_none_of_a_cpu(own_weights: Path, device: str, told: tuple[float, ...] | None) -> None:
    rewrite(own_weights, device=device, stage_ms=[1, 2, 3])
    assert load_calibration(load_weights(own_weights)).file.cpu_ms == told
