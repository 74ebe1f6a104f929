"""`msmlp import`: a weights folder that holds what was given and keeps its promises, or none at all."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.errors import CallerError, ConfigError, DataError, OptionError, WeightsError
from msmlp.model.evaluate import evaluate
from msmlp.model.export.folder import export
from msmlp.model.imported import ImportedCascade
from msmlp.model.training.pretrained import load_initial_weights
from msmlp.model.weights import load_calibration, load_graphs, load_weights
from tests.imported import LABELS, MEAN, STD, cut_network, imported, network, write, write_data
from tests.processes import Call, environment


@pytest.fixture(scope="module")
def folder(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of different sizes; beside it `graph-<k>.onnx`, `labels.txt` and `photos`."""
    return imported(tmp_path_factory.mktemp("own") / "mine", digits, network(digits, 16, 4), network(digits, 32, 24))


def test_the_folder_holds_the_graphs_as_they_were_given(folder: Path) -> None:
    weights = load_weights(folder)
    manifest = weights.manifest
    assert isinstance(manifest.cascade, ImportedCascade)
    assert (manifest.name, manifest.classes) == ("mine", LABELS)
    for k in (1, 2):
        content = (folder / f"source-{k}.onnx").read_bytes()
        assert content == (folder.parent / f"graph-{k}.onnx").read_bytes()
        assert manifest.files[f"source-{k}.onnx"] == hashlib.sha256(content).hexdigest()
    assert weights.nbytes == sum(path.stat().st_size for path in folder.glob("source-*.onnx"))
    given = {"graph-1.onnx", "graph-2.onnx", "labels.txt", "photos"}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, *given}
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 | 0o755


def test_the_calibration_has_a_frontier_between_both_networks(folder: Path) -> None:
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    small, large = (calibration.table.expect_exit(k) for k in (1, 2))
    assert small.accuracy > 0.6
    assert large.accuracy > small.accuracy + 0.05
    best = max(point.expected_accuracy for point in calibration.points)
    assert best >= large.accuracy - 0.03
    assert any(
        p.expected_accuracy > small.accuracy and p.mean_gflops < large.mean_gflops / 2 for p in calibration.points
    )
    assert len(load_graphs(weights, calibration)) == 2


def test_evaluate_and_calibrate_take_the_same_pictures_and_no_others(folder: Path, digits: Any, tmp_path: Path) -> None:
    measured = evaluate(folder, folder.parent / "photos", "val", "cpu")
    assert measured["backend"] == "onnx"
    table = load_calibration(load_weights(folder)).table
    assert [row["accuracy"] for row in measured["exits"]] == [table.expect_exit(k).accuracy for k in (1, 2)]
    copy = Path(shutil.copytree(folder, tmp_path / "mine"))
    made = calibrate(copy, folder.parent / "photos", "cpu", exit_policy="margin", cost="ms")
    assert (made.exit_policy, made.cost) == ("margin", "ms")
    assert len(load_graphs(load_weights(copy), load_calibration(load_weights(copy)))) == 2
    _, others = write_data(tmp_path, digits)
    next((others / "val" / "3").iterdir()).unlink()
    with pytest.raises(DataError, match="not those held out"):
        calibrate(copy, others, "cpu")


def test_int8_graphs_are_nearly_as_accurate(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "mine"))
    found = export(copy, "int8", folder.parent / "photos")["validation"]
    assert np.abs(np.array(found["float32"]) - found["int8"]).max() < 0.05
    graph = onnx.load(copy / "stage-2.int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert any(tensor.data_type == TensorProto.INT8 for tensor in graph.initializer)
    with pytest.raises(OptionError, match="exported in float32 or int8"):
        export(copy, "float16")


def test_neither_import_nor_calibrate_nor_evaluate_needs_torch(folder: Path, tmp_path: Path) -> None:
    there = folder.parent
    words = ["import", "--stages", there / "graph-1.onnx", there / "graph-2.onnx", "--classes", there / "labels.txt"]
    words += ["--data", there / "photos", "--out", tmp_path / "mine", "--int8", "--json"]
    words += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    program = "import sys; sys.modules['torch'] = None; from msmlp.main import main; main()"

    def run(*words: object) -> str:
        command = [sys.executable, "-c", program, *map(str, words)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    document = json.loads(run(*words))
    calibration = load_calibration(load_weights(folder))
    points = [(p["name"], p["expected_accuracy"]) for p in document["operating_points"]]
    assert points == [(point.name, point.expected_accuracy) for point in calibration.points]
    data = ("--weights", tmp_path / "mine", "--data", there / "photos", "--json")
    assert len(json.loads(run("calibrate", *data))["operating_points"]) == len(points)
    assert json.loads(run("evaluate", *data))["backend"] == "onnx"


def test_a_folder_that_is_there_is_left_alone(folder: Path, digits: Any) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"mine exists already; expected a new or empty folder"):
        imported(folder, digits, network(digits, 16, 4))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def says_not_a_number(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Sub", ["before", "before"], ["nothing"]))
    model.graph.node.append(helper.make_node("Div", ["before", "nothing"], ["logits"]))


def norm_over_the_batch(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("ReduceMean", ["before"], ["mean"], axes=[0]))
    model.graph.node.append(helper.make_node("Sub", ["before", "mean"], ["logits"]))


def by_chance(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["before"], ["noise"], scale=10.0))
    model.graph.node.append(helper.make_node("Add", ["before", "noise"], ["logits"]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (says_not_a_number, "stage 1 gives probabilities that are not numbers"),
        (norm_over_the_batch, "stage 1 says other things of an image alone than among others"),
        (by_chance, "stage 1 says other things of an image alone"),
    ],
)
def test_a_graph_that_gives_no_answer_of_its_own_leaves_no_folder(
    digits: Any, tmp_path: Path, spoil: Any, said: str
) -> None:
    model = network(digits, 16, 4)
    spoil(model)
    with pytest.raises(ConfigError, match=said):
        imported(tmp_path / "mine", digits, model)
    assert not list(tmp_path.glob("mine*"))


def test_a_source_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "mine"))
    content = bytearray((copy / "source-2.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "source-2.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=r"source-2\.onnx is damaged"):
        load_weights(copy)


def test_a_manifest_reads_no_file_outside_its_folder(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "mine"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["cascade"]["stages"][0]["graph"] = "../graph-1.onnx"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"cascade\.stages\.0\.graph"):
        load_weights(copy)


def test_training_does_not_start_from_it(folder: Path) -> None:
    with pytest.raises(WeightsError, match="mine is an imported cascade; expected one that msmlp train has made"):
        load_initial_weights(folder)


def test_features_of_a_cut_network_are_reused(digits: Any, tmp_path: Path) -> None:
    weights = load_weights(imported(tmp_path / "cut", digits, *cut_network(digits)))
    assert weights.manifest.cascade.shape.features == ((8, 8, 8), None)
    table = load_calibration(weights).table
    assert table.expect_exit(2).accuracy > table.expect_exit(1).accuracy + 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels, data: labels.write_text("0\n"), "has 1 class name; expected at least 2"),
        (
            lambda labels, data: labels.unlink(),
            r"labels.txt cannot be read \(No such file or directory\); expected one",
        ),
        (lambda labels, data: labels.write_bytes(b"\xff\n0\n"), "is not UTF-8 text"),
        (lambda labels, data: labels.write_text("a\n" * 10), r"has a folder 0, which is no class"),
        (
            lambda labels, data: labels.write_text("0\n" * 10),
            r"has a folder 0, which several classes have as their name",
        ),
        (lambda labels, data: shutil.rmtree(data), "is not a folder"),
        (lambda labels, data: shutil.rmtree(data / "val"), "has no folder"),
        (lambda labels, data: [each.unlink() for each in (data / "val" / "4").iterdir()], "4 contains no image"),
    ],
)
def test_names_and_pictures_that_do_not_fit_are_one_line(digits: Any, tmp_path: Path, change: Any, said: str) -> None:
    from msmlp.model.importing.folder import ImportOptions, import_cascade
    from msmlp.model.importing.stages import Preprocessing

    labels, data = write_data(tmp_path, digits)
    stages = write(tmp_path, network(digits, 16, 4))
    change(labels, data)
    with pytest.raises(CallerError, match=said) as refused:
        import_cascade(ImportOptions(stages, [Preprocessing(MEAN, STD)], labels, data, tmp_path / "mine", device="cpu"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "mine").exists()


def words(there: Path, out: Path, *more: str) -> list[str | Path]:
    stages = [there / "graph-1.onnx", there / "graph-2.onnx"]
    given = ["--classes", there / "labels.txt", "--data", there / "photos", "--out", out, "--device", "cpu"]
    return ["import", "--stages", *stages, *given, *more]


NUMBERS = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def test_the_command_says_what_it_made(
    folder: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--resize", "18", "--resize", "36", "--filter", "bilinear", "--gflops", "0.1,2")
    assert call(*words(folder.parent, tmp_path / "own", *NUMBERS, *more)) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{tmp_path / 'own'} is ready: msmlp serve --weights {tmp_path / 'own'}\n")
    manifest = load_weights(tmp_path / "own").manifest
    assert manifest.gflops_cumulative == [0.1, 2.1]
    assert [view.resize.shorter_side for view in manifest.views.views if view.resize] == [18, 36]
    assert call("info", "--weights", tmp_path / "own") == 0
    assert "exit 2: pictures of 32 px (float32); 2.1 GFLOPs so far" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "stage 1, graph-1.onnx: input 'input' is float32 [n, 3, 16, 16]; state its mean and standard deviation"),
        ((*NUMBERS, "--resize", "18", "--crop-ratio", "0.9"), "--crop-ratio: goes without --resize"),
        ((*NUMBERS, "--crop-ratio", "1.5"), "--crop-ratio: expected a number above 0, up to 1"),
        ((*NUMBERS, "--resize", "18", "--resize", "18", "--resize", "9"), "--resize: given 3 times; expected once, or"),
        ((*NUMBERS, "--filter", "lanczos"), "--filter: 'lanczos' is unknown; expected one of bicubic, bilinear"),
        ((*NUMBERS, "--gflops", "1"), "--gflops: '1'; expected 2 numbers with commas between them"),
        ((*NUMBERS, "--gflops", "1,-1"), "--gflops: expected numbers above 0"),
        (("--mean", "0.5", "--std", "1,1,1"), "--mean: '0.5'; expected 3 numbers with commas between them"),
        (("--mean", "0,0,0", "--std", "1,0,1"), "--std: expected numbers above 0"),
        (("--mean", "nan,0,0", "--std", "1,1,1"), "--mean: 'nan,0,0'; expected 3 numbers"),
    ],
)
def test_a_wrong_option_is_one_line(
    folder: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert call(*words(folder.parent, tmp_path / "own", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"msmlp: {said}")
    assert not (tmp_path / "own").exists()
