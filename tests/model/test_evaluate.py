import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.data import Split, load_dataset
from msmlp.model.errors import DataError, OptionError, WeightsError
from msmlp.model.evaluate import calibration_error, evaluate
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.weights import load_calibration, load_weights


@pytest.fixture(scope="module")
def document(tiny_weights: Path, cifar10_folder: Path) -> dict[str, Any]:
    return evaluate(tiny_weights, cifar10_folder, "test", "cpu")


@pytest.fixture(scope="module")
def held_out(cifar10_folder: Path) -> Split:
    split = load_dataset(cifar10_folder, 32).test
    assert split is not None
    return split


@pytest.fixture(scope="module")
def outputs(tiny_weights: Path, held_out: Split) -> Outputs:
    # Another batch size than evaluate's: within 1e-5 of it, so labels and exits are the same.
    weights = load_weights(tiny_weights)
    temperatures = load_calibration(weights).file.temperatures
    backend = StagedBackend(weights, BackendSettings("cpu", capacity=32, exits=Exits(temperatures)))
    return run_every_exit(backend, held_out.pixels)


def test_the_documents_fields_are_the_contracts(
    document: dict[str, Any], tiny_weights: Path, cifar10_folder: Path
) -> None:
    contract = {"weights", "data", "split", "images", "device", "exits", "operating_points"}
    by_class = {"policy", "classes", "classes_without_images"}
    assert set(document) == contract | {"backend", "dtype", "exit_policy", "audit"} | by_class
    assert document["weights"] == str(tiny_weights)
    assert document["data"] == str(cifar10_folder)
    assert (document["split"], document["images"], document["device"]) == ("test", 150, "cpu")
    assert (document["backend"], document["dtype"]) == ("torch", "float32")
    assert document["exit_policy"] == "max-probability"
    assert [set(row) for row in document["exits"]] == [
        {"exit", "accuracy", "balanced_accuracy", "gflops", "ece", "promise"}
    ] * 3
    fields = {"name", "thresholds", "same_as", "accuracy", "balanced_accuracy", "mean_gflops", "exit_share", "promise"}
    assert all(set(point) == fields for point in document["operating_points"])
    assert {"fast", "balanced", "accurate"} <= {point["name"] for point in document["operating_points"]}
    assert json.loads(json.dumps(document)) == document


def test_exits_equal_a_plain_recomputation(
    document: dict[str, Any], outputs: Outputs, held_out: Split, tiny_weights: Path
) -> None:
    gflops = load_weights(tiny_weights).manifest.gflops_cumulative
    for k, row in enumerate(document["exits"]):
        right = sum(
            int(p.argmax()) == label for p, label in zip(outputs.probabilities[:, k], held_out.labels, strict=True)
        )
        assert row["exit"] == k + 1
        assert row["accuracy"] == pytest.approx(right / 150)
        assert row["gflops"] == pytest.approx(gflops[k])


def test_the_calibration_error_is_that_of_the_served_confidence(
    document: dict[str, Any], outputs: Outputs, held_out: Split
) -> None:
    correct = outputs.predictions == held_out.labels[:, None]
    for k, row in enumerate(document["exits"]):
        assert row["ece"] == pytest.approx(calibration_error(outputs, correct, k), abs=1e-4)


def test_operating_points_equal_a_plain_recomputation(
    document: dict[str, Any], outputs: Outputs, held_out: Split, tiny_weights: Path
) -> None:
    weights = load_weights(tiny_weights)
    gflops = weights.manifest.gflops_cumulative
    calibrated = load_calibration(weights).points
    assert [(p["name"], tuple(p["thresholds"])) for p in document["operating_points"]] == [
        (p.name, p.thresholds) for p in calibrated
    ]
    for point in document["operating_points"]:
        right, cost, share = 0, 0.0, [0, 0, 0]
        for scores, probabilities, label in zip(outputs.scores, outputs.probabilities, held_out.labels, strict=True):
            k = 0
            while k < 2 and not (point["thresholds"][k] < 1 and scores[k] >= point["thresholds"][k]):
                k += 1
            right += int(probabilities[k].argmax() == label)
            cost += gflops[k]
            share[k] += 1
        assert point["accuracy"] == pytest.approx(right / 150)
        assert point["mean_gflops"] == pytest.approx(cost / 150)
        assert point["exit_share"] == pytest.approx([count / 150 for count in share])


def test_calibration_error_by_hand() -> None:
    """Of fifteen bins: |0.95 - 0.5| of two images, then |0.93 - 1| and |0.35 - 0| of one each; 14/15 is 0.9333."""
    confidence = np.array([0.95, 0.95, 0.93, 0.35], dtype=np.float32)
    probabilities = np.zeros((4, 1, 3), dtype=np.float32)
    probabilities[:, 0, 0] = confidence
    probabilities[:, 0, 1] = (1 - confidence) / 2
    probabilities[:, 0, 2] = (1 - confidence) / 2
    correct = np.array([[True], [False], [True], [False]])
    outputs = Outputs(confidence[:, None], probabilities)
    assert calibration_error(outputs, correct, 0) == pytest.approx((0.45 * 2 + 0.07 + 0.35) / 4)


def test_a_sure_and_right_exit_has_no_calibration_error() -> None:
    probabilities = np.zeros((5, 1, 2), dtype=np.float32)
    probabilities[:, 0, 1] = 1.0
    outputs = Outputs(np.ones((5, 1), np.float32), probabilities)
    assert calibration_error(outputs, np.ones((5, 1), dtype=bool), 0) == 0
    assert calibration_error(outputs, np.zeros((5, 1), dtype=bool), 0) == 1


def test_val_gives_what_the_calibration_table_says(tiny_weights: Path, cifar10_folder: Path) -> None:
    document = evaluate(tiny_weights, cifar10_folder, "val", "cpu")
    calibration = load_calibration(load_weights(tiny_weights))
    assert document["images"] == calibration.file.images
    for measured, point in zip(document["operating_points"], calibration.points, strict=True):
        in_sample = calibration.expect(point.thresholds)
        assert measured["accuracy"] == pytest.approx(in_sample.accuracy)
        assert measured["mean_gflops"] == pytest.approx(in_sample.mean_cost)


def test_val_of_other_data_is_refused_and_test_is_not(tiny_weights: Path, digits_folder: Path, tmp_path: Path) -> None:
    """Its "validation images" would be training images; a test split never was."""
    fewer = Path(shutil.copytree(digits_folder, tmp_path / "fewer"))
    for path in sorted(fewer.glob("train/*/*.png"))[::2]:
        path.unlink()
    with pytest.raises(DataError, match="not those held out in training"):
        evaluate(tiny_weights, fewer, "val", "cpu")
    assert evaluate(tiny_weights, fewer, "test", "cpu")["images"] == 150


def test_what_cannot_be_evaluated_says_why(tiny_weights: Path, cifar10_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'train' is unknown; expected val, audit or test"):
        evaluate(tiny_weights, cifar10_folder, "train", "cpu")
    with pytest.raises(OptionError, match="has no audit set: a tenth of each class is 40 of 400 images"):
        evaluate(tiny_weights, cifar10_folder, "audit", "cpu")
    with pytest.raises(OptionError, match="'tpu' is unknown; expected one of auto, cpu, cuda"):
        evaluate(tiny_weights, cifar10_folder, "test", "tpu")
    with pytest.raises(OptionError, match="int8 is not for the torch backend; expected one of auto, float32, bfloat16"):
        evaluate(tiny_weights, cifar10_folder, "test", "cpu", "int8")
    with pytest.raises(DataError, match="nowhere"):
        evaluate(tiny_weights, tmp_path / "nowhere", "test", "cpu")
    uncalibrated = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    (uncalibrated / "calibration.json").unlink()
    with pytest.raises(WeightsError, match="run msmlp calibrate"):
        evaluate(uncalibrated, cifar10_folder, "test", "cpu")


def test_data_without_a_held_out_says_so(tiny_weights: Path, digits_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_folder / "train", tmp_path / "mine" / "train")
    with pytest.raises(DataError, match="image folder mine has no test split"):
        evaluate(tiny_weights, tmp_path / "mine", "test", "cpu")


# --- classes ----------------------------------------------------------------------------------------------------


def test_every_class_has_its_accuracy_and_its_number_of_images(
    document: dict[str, Any], outputs: Outputs, held_out: Split, tiny_weights: Path, cifar10_folder: Path
) -> None:
    assert (document["policy"], document["classes_without_images"]) == ("balanced", [])
    assert [(row["class"], row["images"]) for row in document["classes"]] == [(str(d), 15) for d in range(10)]
    [balanced] = [row for row in document["operating_points"] if row["name"] == "balanced"]
    assert np.mean([row["accuracy"] for row in document["classes"]]) == pytest.approx(balanced["accuracy"])
    fast = evaluate(tiny_weights, cifar10_folder, "test", "cpu", policy="fast")
    [point] = [point for point in load_calibration(load_weights(tiny_weights)).points if point.name == "fast"]
    left = exit_of(outputs.scores, np.array(point.thresholds)) - 1
    right = outputs.predictions[np.arange(150), left] == held_out.labels
    assert fast["policy"] == "fast"
    assert [row["accuracy"] for row in fast["classes"]] == pytest.approx(
        [right[held_out.labels == label].mean() for label in range(10)]
    )


def test_a_large_class_does_not_outweigh_others_in_the_balanced_accuracy(
    outputs: Outputs, held_out: Split, tiny_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    """Fifteen zeros, one seven and no other digit."""
    some = Path(shutil.copytree(digits_folder, tmp_path / "some"))
    for folder in sorted((some / "test").iterdir()):
        if folder.name not in "07":
            shutil.rmtree(folder)
    for path in sorted((some / "test" / "7").iterdir())[1:]:
        path.unlink()
    document = evaluate(tiny_weights, some, "test", "cpu")
    assert document["images"] == 16
    assert [(row["class"], row["images"]) for row in document["classes"]] == [("0", 15), ("7", 1)]
    assert document["classes_without_images"] == list("12345689")
    chosen = [*np.flatnonzero(held_out.labels == 0), np.flatnonzero(held_out.labels == 7)[0]]
    correct = (outputs.predictions == held_out.labels[:, None])[chosen]
    for k, row in enumerate(document["exits"]):
        assert row["accuracy"] == pytest.approx(correct[:, k].mean())
        assert row["balanced_accuracy"] == pytest.approx((correct[:15, k].mean() + correct[15, k]) / 2)


def test_a_class_among_the_test_images_that_the_weights_do_not_know_is_named(
    tiny_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(digits_folder, tmp_path / "other"))
    (other / "test" / "7").rename(other / "test" / "seven")
    with pytest.raises(DataError, match=r"test has classes that train/ lacks: seven$"):
        evaluate(tiny_weights, other, "test", "cpu")


# --- promises ----------------------------------------------------------------------------------------------------


def test_test_images_stand_beside_the_expected_accuracy(document: dict[str, Any], tiny_weights: Path) -> None:
    calibration = load_calibration(load_weights(tiny_weights))
    for row, point in zip(document["operating_points"], calibration.points, strict=True):
        promise, smoothed = row["promise"], (150 * row["accuracy"] + 1) / 152
        assert promise["expected_accuracy"] == point.expected_accuracy
        assert promise["accuracy"] == row["accuracy"]
        assert promise["expected_minus_reached"] == pytest.approx(point.expected_accuracy - row["accuracy"])
        error = (point.standard_error**2 + smoothed * (1 - smoothed) / 152) ** 0.5
        assert promise["standard_error"] == pytest.approx(error)
    validated = calibration.table.correct.mean(axis=0)
    for row, expected in zip(document["exits"], validated, strict=True):
        assert row["promise"]["expected_accuracy"] == pytest.approx(expected)
    assert document["audit"]["images"] == 0
    assert "400 images" in document["audit"]["reason"]


def test_validation_images_do_not_test_what_they_promised(tiny_weights: Path, cifar10_folder: Path) -> None:
    document = evaluate(tiny_weights, cifar10_folder, "val", "cpu")
    assert {row["promise"] for row in document["exits"] + document["operating_points"]} == {None}


def test_the_audit_that_training_recorded_is_that_of_evaluate(audited_weights: Path, audited_digits: Path) -> None:
    document = evaluate(audited_weights, audited_digits, "audit", "cpu")
    recorded = document["audit"]
    assert document["images"] == recorded["images"] == 100
    assert [row["promise"] for row in document["exits"]] == recorded["exits"]
    assert {row["name"]: row["promise"] for row in document["operating_points"]} == recorded["operating_points"]
    assert evaluate(audited_weights, audited_digits, "test", "cpu")["audit"] == recorded


def test_audit_images_that_training_did_not_hold_out_are_refused(
    audited_weights: Path, audited_digits: Path, tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(audited_digits, tmp_path / "fewer"))
    for path in sorted(fewer.glob("train/*/*.png"))[::2]:
        path.unlink()
    with pytest.raises(DataError, match="audit images of this data are not those held out in training"):
        evaluate(audited_weights, fewer, "audit", "cpu")


def test_weights_from_before_there_were_audit_sets_serve_and_say_so(
    audited_weights: Path, audited_digits: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(audited_weights, tmp_path / "older"))
    for name, keys in (("manifest.json", ("training",)), ("calibration.json", ())):
        content = whole = json.loads((older / name).read_text())
        for key in keys:
            content = content[key]
        del content["audit"]
        (older / name).write_text(json.dumps(whole))
    document = evaluate(older, audited_digits, "test", "cpu")
    assert document["audit"]["images"] == 0
    assert document["audit"]["reason"] == "the weights were trained before audit sets existed"
    with pytest.raises(OptionError, match="has no audit set: the weights were trained before audit sets existed"):
        evaluate(older, audited_digits, "audit", "cpu")
    # They chose thresholds on the same validation images as ever.
    assert evaluate(older, audited_digits, "val", "cpu")["images"] == 100
