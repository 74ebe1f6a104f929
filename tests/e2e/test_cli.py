"""The offline commands: what they write to stdout and to stderr, and their exit status."""

import json
import re
import shutil
from pathlib import Path

import pytest

from msmlp.model.evaluate import evaluate
from msmlp.model.nn.config import cumulative_gflops, preset
from msmlp.model.weights import load_calibration, load_weights
from tests.processes import Call, run_msmlp


def test_evaluate_prints_one_document(tiny_weights: Path, cifar10_folder: Path) -> None:
    done = run_msmlp(
        "evaluate", "--weights", tiny_weights, "--data", cifar10_folder, "--split", "test", "--device", "cpu", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == evaluate(tiny_weights, cifar10_folder, "test", "cpu")


def test_calibrate_prints_one_document_and_writes_it(
    call: Call, capfd: pytest.CaptureFixture[str], tiny_weights: Path, cifar10_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    (folder / "calibration.json").unlink()
    assert call("calibrate", "--weights", folder, "--data", cifar10_folder, "--device", "cpu", "--json") == 0
    out, err = capfd.readouterr()
    [said] = [line for line in err.splitlines() if "validation images" in line]
    printed = json.loads(out)["operating_points"]
    error = max(point["standard_error"] for point in printed)
    assert said.startswith(
        f"only 40 validation images: the standard error of an expected accuracy is up to {100 * error:.1f}"
    )
    assert "val/ folder" in said
    assert printed == json.loads((folder / "calibration.json").read_text())["operating_points"]
    assert {"fast", "balanced", "accurate"} <= {point["name"] for point in printed}


def test_info_prints_one_document(call: Call, capfd: pytest.CaptureFixture[str], tiny_weights: Path) -> None:
    assert call("info", "--weights", tiny_weights, "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document["exits"][0]) == {"exit", "gflops", "gflops_unfolded"}
    assert document["operating_points"]


def test_train_prints_one_document_and_its_progress_elsewhere(cifar10_folder: Path, tmp_path: Path) -> None:
    command = ("train", "--data", cifar10_folder, "--preset", "tiny", "--out", tmp_path / "w", "--epochs", "1")
    done = run_msmlp(*command, "--recipe", "quick", "--limit-per-class", "4", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["weights"] == str(tmp_path / "w")
    assert [row["exit"] for row in document["results"]] == [1, 2, 3]
    assert "epoch 1: loss" in done.stderr
    assert done.stderr.count("only 40 validation images") == 1


def test_info_of_a_preset_for_people(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", "--preset", "paper-s") == 0
    printed = capsys.readouterr()
    assert "exit 3: 64 tokens, width 512, 8 blocks" in printed.out
    assert printed.err == ""


def test_small_costs_are_not_rounded_away(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", "--preset", "tiny") == 0
    said = re.findall(r"; (\S+) GFLOPs so far", capsys.readouterr().out)
    assert [float(cost) for cost in said] == pytest.approx(cumulative_gflops(preset("tiny")), rel=5e-3)


@pytest.mark.usefixtures("no_graphs")
def test_many_validation_images_are_nothing_to_warn_of(
    call: Call, capsys: pytest.CaptureFixture[str], tiny_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(digits_folder, tmp_path / "digits"))
    (data / "test").rename(data / "val")
    command = ("train", "--data", data, "--preset", "tiny", "--recipe", "quick", "--epochs", "0", "--device", "cpu")
    assert call(*command, "--out", tmp_path / "w") == 0
    printed = capsys.readouterr()
    assert "of 150 validation images" in printed.out
    assert "only" not in printed.err


def test_tables_for_people(
    call: Call, capsys: pytest.CaptureFixture[str], tiny_weights: Path, cifar10_folder: Path
) -> None:
    command = ("evaluate", "--weights", tiny_weights, "--data", cifar10_folder, "--split", "test", "--device", "cpu")
    assert call(*command) == 0
    printed = capsys.readouterr().out
    document = evaluate(tiny_weights, cifar10_folder, "test", "cpu")
    assert "150 test images" in printed
    for row in [*document["exits"], *document["operating_points"]]:
        assert f"{100 * row['accuracy']:.2f} %" in printed
        assert f"{100 * row['balanced_accuracy']:.2f} %" in printed
    for row in document["classes"]:
        assert f"\n{row['class']:<9} {100 * row['accuracy']:6.2f} %  {row['images']}\n" in printed
    assert call("info", "--weights", tiny_weights) == 0
    printed = capsys.readouterr().out
    assert "trained by: " in printed
    for point in load_calibration(load_weights(tiny_weights)).points:
        expected = f"{100 * point.expected_accuracy:.2f} % ± {100 * point.standard_error:.2f}"
        assert re.search(rf"^{point.name} +{expected} ", printed, flags=re.MULTILINE)


def mistakes(weights: Path, data: Path, nowhere: Path) -> dict[str, tuple[list[str | Path], str]]:
    return {
        "no weights": (["evaluate", "--weights", nowhere, "--data", data], "there is no weights folder"),
        "no data": (["evaluate", "--weights", weights, "--data", nowhere], "does not exist"),
        "no data set": (["calibrate", "--weights", weights, "--data", weights], "is not a data set"),
        "no such split": (
            ["evaluate", "--weights", weights, "--data", data, "--split", "dev"],
            "'val', 'audit', 'test'",
        ),
        "no such device": (
            ["calibrate", "--weights", weights, "--data", data, "--device", "tpu"],
            "'auto', 'cpu', 'cuda'",
        ),
        "no GPU": (["evaluate", "--weights", weights, "--data", data, "--device", "cuda"], "use auto or cpu"),
        "a folder that cannot be": (
            ["train", "--data", data, "--preset", "tiny", "--out", weights / "manifest.json" / "x"],
            "cannot create the folder",
        ),
        "neither": (["info"], "give one of --weights and --preset"),
        "both": (["info", "--weights", weights, "--preset", "tiny"], "give one of --weights and --preset"),
        "no such preset": (["info", "--preset", "huge"], "paper-s"),
        "half a weights folder": (["info", "--weights", nowhere.parent], "manifest.json"),
    }


@pytest.mark.parametrize("what", mistakes(Path(), Path(), Path()))
def test_a_mistake_is_one_line_and_exit_status_2(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    tiny_weights: Path,
    cifar10_folder: Path,
    tmp_path: Path,
    what: str,
) -> None:
    command, said = mistakes(tiny_weights, cifar10_folder, tmp_path / "nowhere")[what]
    assert call(*command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("msmlp: ")
    assert said in line


def test_a_mistake_is_one_line_from_a_process_too(tmp_path: Path) -> None:
    done = run_msmlp("info", "--weights", tmp_path, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
