import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from model.backends.torch import TorchBackend
from model.calibration.calibrate import calibrate, validation_images
from model.datasets import load_dataset
from model.errors import DataError, WeightsError
from model.offline import run_every_exit
from model.weights import load_calibration, load_weights, model_version


@pytest.fixture
def own_weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_calibrating_writes_what_loading_reads(own_weights: Path, cifar10_folder: Path) -> None:
    (own_weights / "calibration.json").unlink()
    (own_weights / "calibration.safetensors").unlink()
    points = calibrate(own_weights, cifar10_folder, "cpu")
    weights = load_weights(own_weights)
    calibration = load_calibration(weights)
    assert list(calibration.points) == points

    images = validation_images(weights, load_dataset(cifar10_folder, 32))
    outputs = run_every_exit(TorchBackend(weights, device="cpu", capacity=64, max_batch=64), images.pixels)
    for point in points:
        got = calibration.expect(point.thresholds)
        assert got.accuracy == pytest.approx(point.expected_accuracy)
        assert got.mean_gflops == pytest.approx(point.mean_gflops)
        assert got.exit_share == pytest.approx(point.exit_share)
    for k in range(3):
        bounded = calibration.expect((1.0, 1.0), k + 1, k + 1)
        assert bounded.accuracy == pytest.approx((outputs.predictions[:, k] == images.labels).mean())
        assert bounded.mean_gflops == pytest.approx(weights.manifest.gflops_cumulative[k])


def test_every_layout_of_the_data_calibrates_alike_and_leaves_the_model_alone(
    own_weights: Path, cifar10_folder: Path
) -> None:
    """Another layout gives the same images in another order; these weights were calibrated on the image folder."""
    before = {name: (own_weights / name).read_bytes() for name in ("manifest.json", "model.safetensors")}
    assert list(load_calibration(load_weights(own_weights)).points) == calibrate(own_weights, cifar10_folder, "cpu")
    assert {name: (own_weights / name).read_bytes() for name in before} == before
    written = {path.name: path.read_bytes() for path in own_weights.glob("calibration.*")}
    calibrate(own_weights, cifar10_folder, "cpu")
    assert {path.name: path.read_bytes() for path in own_weights.glob("calibration.*")} == written


def test_other_validation_images_are_refused(own_weights: Path, digits_folder: Path, tmp_path: Path) -> None:
    before = (own_weights / "calibration.json").read_bytes()
    fewer = Path(shutil.copytree(digits_folder, tmp_path / "fewer"))
    for path in sorted(fewer.glob("train/3/*.png"))[:20]:
        path.unlink()
    with pytest.raises(DataError, match="not those held out in training"):
        calibrate(own_weights, fewer, "cpu")
    shutil.copytree(fewer / "train", fewer / "val")
    with pytest.raises(DataError, match="not those held out in training"):
        calibrate(own_weights, fewer, "cpu")
    assert (own_weights / "calibration.json").read_bytes() == before


def test_another_seed_is_refused(own_weights: Path, cifar10_folder: Path) -> None:
    path = own_weights / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"]["validation"]["seed"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not those held out in training"):
        calibrate(own_weights, cifar10_folder, "cpu")


def test_other_classes_are_refused_by_name(own_weights: Path, digits_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(digits_folder, tmp_path / "other"))
    for split in ("train", "test"):
        (other / split / "9").rename(other / split / "nine")
    with pytest.raises(DataError, match="9, nine"):
        calibrate(own_weights, other, "cpu")


def test_one_changed_pixel_among_the_validation_images_is_noticed(
    own_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(digits_folder, tmp_path / "changed"))
    for path in changed.glob("train/0/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match="not those held out in training"):
        calibrate(own_weights, changed, "cpu")


def test_no_calibration_says_what_to_do(own_weights: Path) -> None:
    (own_weights / "calibration.json").unlink()
    with pytest.raises(WeightsError, match="not calibrated; run msmlp calibrate"):
        load_calibration(load_weights(own_weights))


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
        {"exit_policy": "entropy"},
        {"operating_points": []},
        {"operating_points": [{"name": "fast"}]},
        {"temperatures": [1.0, 1.0]},
        {"temperatures": [1.0, 0.0, 1.0]},
        {"images": "many"},
    ],
    ids=lambda change: "-".join(f"{k}" for k in change),
)
def test_a_calibration_that_does_not_fit_is_refused(own_weights: Path, changes: dict[str, object]) -> None:
    rewrite(own_weights, **changes)
    with pytest.raises(WeightsError, match=r"calibration\.json"):
        load_calibration(load_weights(own_weights))


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


def test_the_version_names_model_and_calibration(own_weights: Path) -> None:
    weights = load_weights(own_weights)
    before = model_version(weights, load_calibration(weights))
    assert model_version(weights, load_calibration(weights)) == before
    rewrite(own_weights, device="another")
    assert model_version(weights, load_calibration(weights)) != before
