import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.calibration.calibrate import Cost, calibrate, calibrate_on, measure_stage_ms
from msmlp.model.calibration.crossfit import fit_temperatures, folds_of
from msmlp.model.data import load_dataset
from msmlp.model.errors import DataError, DeviceError, OptionError
from msmlp.model.exits.policies import EXIT_POLICIES, exit_policy
from msmlp.model.export.folder import TOLERANCES, export
from msmlp.model.offline import run_every_exit, validation_images
from msmlp.model.weights import OperatingPoint, Weights, load_calibration, load_graphs, load_weights
from msmlp.model.weights.calibration import CalibrationFile, Table
from msmlp.model.weights.graphs import has_graphs


@pytest.fixture
def own_weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))


@pytest.fixture
def one_stage(one_stage_weights: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into, soon exported."""
    return Path(shutil.copytree(one_stage_weights, tmp_path / "one-stage"))


def without_times(points: tuple[OperatingPoint, ...]) -> list[dict[str, object]]:
    """Points without the times, which differ in every run."""
    return [point.model_dump(exclude={"mean_ms"}) for point in points]


def backend_of(weights: Weights, file: CalibrationFile) -> StagedBackend:
    exits = Exits(file.temperatures, file.exit_policy)
    return StagedBackend(weights, BackendSettings("cpu", capacity=64, exits=exits))


def test_calibrating_writes_what_loading_reads(own_weights: Path, cifar10_folder: Path) -> None:
    (own_weights / "calibration.json").unlink()
    (own_weights / "calibration.safetensors").unlink()
    made = calibrate(own_weights, cifar10_folder, "cpu")
    weights = load_weights(own_weights)
    calibration = load_calibration(weights)
    assert calibration.points == made.operating_points
    assert (made.device, made.dtype, made.cost, made.images) == ("cpu", "float32", "gflops", 40)

    # The table is what the serving backend computes with these temperatures and this exit policy.
    images = validation_images(weights, load_dataset(cifar10_folder, 32))
    outputs = run_every_exit(backend_of(weights, made), images.pixels)
    correct = outputs.predictions == images.labels[:, None]
    gflops = np.array(weights.manifest.gflops_cumulative)
    for thresholds in [*(p.thresholds for p in made.operating_points), (0.31, 0.7), (0.9, 0.0)]:
        got = calibration.expect(thresholds)
        wanted = Table(outputs.scores, correct, gflops).expect(thresholds)
        assert got.accuracy == pytest.approx(wanted.accuracy)
        assert got.mean_cost == pytest.approx(wanted.mean_cost)
        assert got.exit_share == pytest.approx(wanted.exit_share)
    for k in range(3):
        bounded = calibration.expect((1.0, 1.0), k + 1, k + 1)
        assert bounded.accuracy == pytest.approx((outputs.predictions[:, k] == images.labels).mean())
        assert bounded.mean_cost == pytest.approx(gflops[k])


def test_temperatures_are_fitted_on_the_validation_images(own_weights: Path, cifar10_folder: Path) -> None:
    made = calibrate(own_weights, cifar10_folder, "cpu")
    weights = load_weights(own_weights)
    images = validation_images(weights, load_dataset(cifar10_folder, 32))
    count = len(images)

    # Smoothed by one image that is for no class.
    target = (count * np.eye(10)[images.labels][:, None] + 1 / 10) / (count + 1)

    def loss(temperatures: tuple[float, ...]) -> np.ndarray:
        backend = StagedBackend(weights, BackendSettings("cpu", capacity=64, exits=Exits(temperatures)))
        probabilities = run_every_exit(backend, images.pixels).probabilities
        return -(target * np.log(np.maximum(probabilities, 1e-38))).sum(axis=2).mean(axis=0)

    fitted = loss(made.temperatures)
    for other in (0.9, 1.1):
        assert (fitted <= loss(tuple(other * t for t in made.temperatures)) + 1e-6).all()
    assert (fitted <= loss((1.0, 1.0, 1.0)) + 1e-6).all()


@pytest.mark.usefixtures("no_graphs")
def test_a_risk_is_certified_by_images_that_had_no_say_in_the_temperatures(
    own_weights: Path, cifar10_folder: Path
) -> None:
    without = calibrate(own_weights, cifar10_folder, "cpu")
    made = calibrate(own_weights, cifar10_folder, "cpu", risk=0.3, confidence=0.9)
    weights = load_weights(own_weights)
    images = validation_images(weights, load_dataset(cifar10_folder, 32))
    untempered = run_every_exit(
        StagedBackend(weights, BackendSettings("cpu", capacity=64)), images.pixels
    ).probabilities
    half = folds_of(images.identities, 2) == 0
    assert half.sum() == 20
    assert made.temperatures == pytest.approx(fit_temperatures(untempered[half], images.labels[half]), rel=1e-4)
    assert without.temperatures == pytest.approx(fit_temperatures(untempered, images.labels), rel=1e-4)
    assert made.temperatures != pytest.approx(without.temperatures, rel=1e-3)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("cost", ["gflops", "ms"])
def test_a_risk_controlled_point_takes_its_place_among_the_others(
    own_weights: Path, cifar10_folder: Path, cost: Cost
) -> None:
    made = calibrate(own_weights, cifar10_folder, "cpu", risk=0.3, cost=cost)
    [ours] = [point for point in made.operating_points if point.risk is not None]
    assert (ours.name, ours.risk, ours.confidence) == ("risk-0.3", 0.3, 0.95)
    spent = [point.mean_ms if cost == "ms" else point.mean_gflops for point in made.operating_points]
    assert spent == sorted(spent)
    calibration = load_calibration(load_weights(own_weights))
    assert calibration.points == made.operating_points
    got = calibration.expect(ours.thresholds)
    assert (got.mean_cost, got.exit_share) == (pytest.approx(ours.mean_gflops), pytest.approx(ours.exit_share))


@pytest.mark.usefixtures("no_graphs")
def test_audit_images_choose_nothing_and_are_measured_as_served(
    audited_weights: Path, audited_digits: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(audited_weights, tmp_path / "audited"))
    weights, data = load_weights(folder), load_dataset(audited_digits, 16)
    parts = data.partition(seed=0)
    without = calibrate_on(weights, parts.validation, None, "cpu")
    made = calibrate(folder, audited_digits, "cpu")
    assert made.temperatures == without.temperatures
    assert without_times(made.operating_points) == without_times(without.operating_points)

    assert without.audit is None
    assert made.audit is not None
    assert parts.audit is not None
    outputs = run_every_exit(backend_of(weights, made), parts.audit.pixels)
    correct, gflops = outputs.correct(parts.audit.labels), np.array(weights.manifest.gflops_cumulative)
    table = Table(outputs.scores, correct, gflops)
    assert [row.accuracy for row in made.audit.exits] == pytest.approx(correct.mean(axis=0).tolist())
    assert made.audit.operating_points.keys() == {point.name for point in made.operating_points}
    for point in made.operating_points:
        promise, reached = made.audit.operating_points[point.name], table.expect(point.thresholds)
        assert promise.expected_minus_reached == pytest.approx(point.expected_accuracy - reached.accuracy)
        assert promise.standard_error == pytest.approx(np.hypot(point.standard_error, reached.standard_error))
    assert load_calibration(load_weights(folder)).file.audit == made.audit


def test_points_of_older_files_have_no_risk(own_weights: Path) -> None:
    path = own_weights / "calibration.json"
    document = json.loads(path.read_text())
    for point in document["operating_points"]:
        del point["risk"], point["confidence"]
    path.write_text(json.dumps(document))
    points = load_calibration(load_weights(own_weights)).points
    assert {(point.risk, point.confidence) for point in points} == {(None, None)}


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("policy", EXIT_POLICIES)
def test_scores_are_those_of_the_exit_policy(own_weights: Path, cifar10_folder: Path, policy: str) -> None:
    made = calibrate(own_weights, cifar10_folder, "cpu", exit_policy=policy)
    weights = load_weights(own_weights)
    calibration = load_calibration(weights)
    assert (made.exit_policy, calibration.file.exit_policy, made.exit_policy_parameters) == (policy, policy, {})
    outputs = run_every_exit(
        backend_of(weights, made), validation_images(weights, load_dataset(cifar10_folder, 32)).pixels
    )
    for k in range(3):
        assert outputs.scores[:, k] == pytest.approx(exit_policy(policy)(outputs.probabilities[:, k]), abs=1e-6)
    first = float(np.median(outputs.scores[:, 0]))
    share = (outputs.scores[:, 0] >= first).mean()
    assert calibration.expect((first, 0.0)).exit_share == pytest.approx((share, 1 - share, 0.0))


def test_milliseconds_are_measured_and_can_be_what_the_frontier_spends(own_weights: Path, cifar10_folder: Path) -> None:
    made = calibrate(own_weights, cifar10_folder, "cpu", cost="ms")
    assert made.cost == "ms"
    assert made.stage_ms is not None
    assert made.stage_ms_batch_size == 48
    assert len(made.stage_ms) == 3
    costs = np.cumsum(made.stage_ms)
    for point in made.operating_points:
        assert point.mean_ms == pytest.approx(np.array(point.exit_share) @ costs)
    assert [p.mean_ms for p in made.operating_points] == sorted(p.mean_ms for p in made.operating_points)


def test_what_cannot_be_calibrated_says_why_and_changes_nothing(own_weights: Path, cifar10_folder: Path) -> None:
    before = (own_weights / "calibration.json").read_bytes()
    with pytest.raises(OptionError, match="'oracle' is unknown; expected one of max-probability, margin, entropy"):
        calibrate(own_weights, cifar10_folder, "cpu", exit_policy="oracle")
    with pytest.raises(OptionError, match="'int8' is not supported; expected one of auto, float32, bfloat16"):
        calibrate(own_weights, cifar10_folder, "cpu", dtype="int8")
    assert (own_weights / "calibration.json").read_bytes() == before


def test_every_layout_of_the_data_calibrates_alike_and_leaves_the_model_alone(
    own_weights: Path, cifar10_folder: Path
) -> None:
    """Another layout gives the same images in another order; these weights were calibrated on the image folder."""
    before = {name: (own_weights / name).read_bytes() for name in ("manifest.json", "model.safetensors")}
    on_folder = load_calibration(load_weights(own_weights)).file
    on_archive = calibrate(own_weights, cifar10_folder, "cpu")
    assert on_archive.temperatures == pytest.approx(on_folder.temperatures)
    assert [p.name for p in on_archive.operating_points] == [p.name for p in on_folder.operating_points]
    for ours, theirs in zip(on_archive.operating_points, on_folder.operating_points, strict=True):
        assert ours.thresholds == pytest.approx(theirs.thresholds)
        assert ours.expected_accuracy == pytest.approx(theirs.expected_accuracy)
    assert {name: (own_weights / name).read_bytes() for name in before} == before
    table = (own_weights / "calibration.safetensors").read_bytes()
    again = calibrate(own_weights, cifar10_folder, "cpu")
    assert without_times(again.operating_points) == without_times(on_archive.operating_points)
    assert (own_weights / "calibration.safetensors").read_bytes() == table


def test_graphs_that_no_longer_match_are_exported_again(one_stage: Path, cifar10_folder: Path) -> None:
    """Those of every format in the folder, and no others; graphs that still match stay as they are."""
    export(one_stage, "float16")
    calibrate(one_stage, cifar10_folder, "cpu", exit_policy="margin")
    weights = load_weights(one_stage)
    for dtype in ("float32", "float16"):
        assert len(load_graphs(weights, load_calibration(weights), dtype)) == 1
    assert not has_graphs(one_stage, "int8")
    before = {path: path.stat().st_mtime_ns for path in one_stage.glob("*.onnx")}
    calibrate(one_stage, cifar10_folder, "cpu", exit_policy="margin", cost="ms")
    assert {path: path.stat().st_mtime_ns for path in one_stage.glob("*.onnx")} == before


def test_no_stale_graphs_are_left_where_the_export_fails(
    one_stage: Path, cifar10_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "float32", -1.0)
    with pytest.raises(DeviceError, match="differs from torch"):
        calibrate(one_stage, cifar10_folder, "cpu", exit_policy="entropy")
    assert not has_graphs(one_stage)
    assert not list(one_stage.glob("*.onnx"))


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


def test_stages_are_timed_on_one_core(
    own_weights: Path, cifar10_folder: Path, monkeypatch: pytest.MonkeyPatch, no_graphs: None
) -> None:
    threads = []
    monkeypatch.setattr(
        "msmlp.model.calibration.calibrate.measure_stage_ms",
        lambda *given: threads.append(torch.get_num_threads()) or measure_stage_ms(*given),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calibrate(own_weights, cifar10_folder, "cpu")
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_every_stage_takes_time_and_no_slot_is_kept(tiny_weights: Path) -> None:
    """Images are repeated to fill the smallest bucket that takes them all, and no larger one."""
    backend = StagedBackend(load_weights(tiny_weights), BackendSettings("cpu", capacity=8))
    stage_ms, batch = measure_stage_ms(backend, np.zeros((3, 32, 32, 3), dtype=np.uint8))
    assert batch == 4
    assert measure_stage_ms(backend, np.zeros((99, 32, 32, 3), dtype=np.uint8))[1] == 8
    assert len(stage_ms) == backend.stages
    assert all(ms > 0 for ms in stage_ms)
    assert len(backend.admit(np.zeros((8, 32, 32, 3), dtype=np.uint8))) == 8
