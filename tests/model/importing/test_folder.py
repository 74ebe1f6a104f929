"""`msmlp import`: a weights folder that holds what was given and keeps its promises, or none at all."""

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from msmlp.model.backends.onnx import cpu
from msmlp.model.backends.onnx.cpu import OnnxBackend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.errors import CallerError, ConfigError, DataError, OptionError, WeightsError
from msmlp.model.evaluate import evaluate
from msmlp.model.export.folder import export, one_core_backend
from msmlp.model.export.quantize import OPERATORS, Ranges
from msmlp.model.imported import ImportedCascade
from msmlp.model.importing.folder import ImportOptions, import_cascade
from msmlp.model.importing.stages import Preprocessing
from msmlp.model.offline import run_every_exit
from msmlp.model.shape import CascadeShape
from msmlp.model.training.pretrained import load_initial_weights
from msmlp.model.weights import load_calibration, load_graphs, load_weights
from tests.imported import (
    LABELS,
    MEAN,
    STD,
    Sketch,
    convolution,
    cut_network,
    imported,
    network,
    picture_input,
    tensor,
    write,
    write_data,
)
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


def test_stages_are_timed_on_one_core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: 3)  # each would have a part of a batch
    weights, exits = load_weights(folder), Exits((1.0, 1.0), "max-probability")
    ran_on = set()
    with one_core_backend(weights, BackendSettings("cpu", capacity=32, exits=exits)) as backend:
        assert isinstance(backend, OnnxBackend)
        real = backend._run

        def slowly(stage: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            ran_on.add(get_ident())
            time.sleep(0.01)
            return real(stage, rows)

        monkeypatch.setattr(backend, "_run", slowly)
        run_every_exit(backend, np.zeros((32, *weights.manifest.cascade.shape.image), dtype=np.uint8))
    assert ran_on == {get_ident()}


def test_the_calibration_has_a_frontier_between_both_networks(folder: Path) -> None:
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    small, large = (calibration.table.expect_exit(k) for k in (1, 2))
    assert small.accuracy > 0.6
    assert large.accuracy > small.accuracy + 0.05
    best = max(point.expected_accuracy for point in calibration.points)
    assert best >= large.accuracy - 0.03
    assert any(p.expected_accuracy > small.accuracy and p.mean_gflops < large.mean_cost / 2 for p in calibration.points)
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


def white_is_not_a_number(model: onnx.ModelProto) -> None:
    """log(0.99 of white - the darkest pixel's red), times 0."""
    red_of_white = (1 - MEAN[0]) / STD[0]
    numbers = {"most": np.array(0.99 * red_of_white, np.float32), "nought": np.array(0, np.float32)}
    for name, value in (*numbers.items(), ("from", np.array([0])), ("to", np.array([1])), ("channel", np.array([1]))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.extend(
        [
            helper.make_node("Slice", ["input", "from", "to", "channel"], ["red"]),
            helper.make_node("ReduceMin", ["red"], ["darkest"], axes=[2, 3], keepdims=0),
            helper.make_node("Sub", ["most", "darkest"], ["left"]),
            helper.make_node("Log", ["left"], ["log"]),
            helper.make_node("Mul", ["log", "nought"], ["nothing"]),
            helper.make_node("Add", ["before", "nothing"], ["logits"]),
        ]
    )


def unknown_to_the_runtime(model: onnx.ModelProto) -> None:
    """It has no Elu of doubles."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Cast", ["before"], ["double"], to=TensorProto.DOUBLE))
    model.graph.node.append(helper.make_node("Elu", ["double"], ["elu"]))
    model.graph.node.append(helper.make_node("Cast", ["elu"], ["logits"], to=TensorProto.FLOAT))


TOLD = ("stage 1: ", "reading the pictures", "running 8 pictures", "calibrating on ")
"""How the lines begin that say what import does."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (says_not_a_number, "^stage 1: NaN or infinite scores for 151 of 151 pictures$"),
        (white_is_not_a_number, "^stage 1: NaN or infinite scores for 1 of 151 pictures$"),
        (norm_over_the_batch, "stage 1 answers differently for a picture alone than in a batch"),
        (by_chance, "stage 1 answers differently for a picture alone"),
        (unknown_to_the_runtime, r"ONNX Runtime cannot run these graphs: stage 1: .*Elu"),
    ],
)
def test_a_graph_that_gives_no_answer_of_its_own_leaves_no_folder(
    digits: Any, tmp_path: Path, spoil: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = network(digits, 16, 4)
    spoil(model)
    write_data(tmp_path, digits)
    # The trial pictures are others.
    Image.new("RGB", (16, 16), "white").save(tmp_path / "photos" / "val" / "0" / "white.png")
    with pytest.raises(CallerError, match=said) as refused:
        imported(tmp_path / "mine", digits, model)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*mine*"))
    # Nothing of ONNX Runtime's own.
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith(TOLD)] == []


def softmax_in_parts(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("LogSoftmax", ["before"], ["logs"], axis=1))
    model.graph.node.append(helper.make_node("Exp", ["logs"], ["logits"]))


def test_answers_show_that_they_are_probabilities(digits: Any, tmp_path: Path) -> None:
    logits, softmax, parts = network(digits, 16, 4), network(digits, 16, 4, softmax=True), network(digits, 16, 4)
    softmax_in_parts(parts)
    weights = load_weights(imported(tmp_path / "mine", digits, logits, softmax, parts))
    assert isinstance(weights.manifest.cascade, ImportedCascade)
    assert [stage.probabilities for stage in weights.manifest.cascade.stages] == [False, True, True]
    temperatures = load_calibration(weights).file.temperatures
    assert temperatures == pytest.approx([temperatures[0]] * 3, rel=1e-3)


def test_a_graph_of_a_folder_that_names_another_file_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "mine"))
    (tmp_path / "secret").write_bytes(bytes(4 * 4 * 3 * 3 * 3))
    model = onnx.load(copy / "source-1.onnx")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    content = model.SerializeToString()
    (copy / "source-1.onnx").write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["source-1.onnx"] = hashlib.sha256(content).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"source-1\.onnx: tensor 'conv1.weight' has its data in another file"):
        calibrate(copy, folder.parent / "photos", "cpu")


def test_what_has_no_float32_weight_is_not_quantized() -> None:
    sketch = Sketch(inputs=[tensor("pixels", 4, 4, 3, kind=TensorProto.UINT8)])
    sketch.node("Cast", ["pixels"], "cast", to=TensorProto.FLOAT16)
    sketch.node("MatMul", ["cast", sketch.weight("half", np.eye(3, dtype=np.float16))], "product")
    ranges = Ranges(np.zeros((2, 4, 4, 3), np.uint8), CascadeShape(2, (4,), (0,), (None,)))
    with pytest.raises(ConfigError, match=r"stage 1 cannot be quantized; expected a weight of float32 in one of its"):
        ranges.quantized(sketch.model(), OPERATORS)


def test_what_the_quantizer_does_not_know_is_one_line(digits: Any, tmp_path: Path) -> None:
    """It knows no tensor behind a group norm of this opset."""
    sketch = Sketch()
    source = convolution(sketch, "conv", picture_input(sketch, 16), (3, 4), 0)
    sketch.node(
        "GroupNormalization", [source, sketch.weight("ones", np.ones(4, np.float32)), "ones"], "n", num_groups=2
    )
    sketch.node("GlobalAveragePool", ["n"], "pooled")
    sketch.node("Flatten", ["pooled"], "flat")
    sketch.weight("matrix", np.ones((4, 10), np.float32))
    sketch.weight("bias", np.ones(10, np.float32))
    sketch.node("Gemm", ["flat", "matrix", "bias"], "logits")
    sketch.outputs.append(tensor("logits", 10))
    with pytest.raises(ConfigError, match=r"^stage 1 cannot be quantized by ONNX Runtime: ") as refused:
        imported(tmp_path / "mine", digits, sketch.model(opset=23), int8=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("labels.txt/mine", r"labels.txt/mine cannot be made; expected .*labels.txt to be a folder that can be"),
        ("link", "link is a link or the current folder; expected a new or empty folder"),
        (".", r"^\. is a link or the current folder"),
        ("photos/val/mine", "mine is among the pictures of photos; expected a folder elsewhere"),
    ],
)
def test_where_no_folder_can_be_made_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    options = ImportOptions([Path("none.onnx")], [Preprocessing()], Path("labels.txt"), Path("photos"), Path(out))
    with pytest.raises(ConfigError, match=said):
        import_cascade(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.txt", "link"]


def test_cuda_where_there_is_none_is_not_quietly_the_cpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmlp.model.backends.select.gpu_present", lambda: False)
    options = ImportOptions([Path("a.onnx")], [Preprocessing()], Path("b"), Path("c"), tmp_path / "d", device="cuda")
    with pytest.raises(OptionError, match="cuda is not available here"):
        import_cascade(options)
    with pytest.raises(OptionError, match="cuda is not available here"):
        calibrate(folder, folder.parent / "photos", "cuda")


def test_a_full_disk_is_one_line(digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some/hidden/file")

    monkeypatch.setattr("msmlp.model.importing.folder.write_imported", full)
    with pytest.raises(ConfigError, match=r"^cannot write .*/mine: No space left on device$"):
        imported(tmp_path / "mine", digits, network(digits, 16, 4))
    assert not list(tmp_path.glob("*mine*"))


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
        (
            lambda labels, data: labels.write_bytes(b"0\n1\x1b[31m\n"),
            r"the class name '1\\x1b\[31m'; expected none",
        ),
        (lambda labels, data: labels.write_text("a\n" * 10), r"has a folder 0, which is not a class"),
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
    more = ("--resize", "18", "--resize", "36", "--filter", "bilinear", "--gflops", "0.1,2", "--cost", "ms")
    labels = folder.parent / "labels.txt"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())  # as some editors write it
    assert call(*words(folder.parent, tmp_path / "own", *NUMBERS, *more)) == 0
    printed, told = capsys.readouterr()
    assert f"stage 2: {folder.parent / 'graph-2.onnx'}, 2 GFLOPs\n" in told
    assert "calibrating on 150 pictures\n" in told
    assert printed.endswith(f"{tmp_path / 'own'} is ready: msmlp serve --weights {tmp_path / 'own'}\n")
    manifest = load_weights(tmp_path / "own").manifest
    assert manifest.gflops_cumulative == [0.1, 2.1]
    assert [view.resize.shorter_side for view in manifest.views.views if view.resize] == [18, 36]
    assert call("info", "--weights", tmp_path / "own") == 0
    printed = capsys.readouterr().out
    assert "exit 2: pictures of 32 px (float32); 2.1 GFLOPs so far" in printed
    assert "thresholds were chosen by ms" in printed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            (),
            "stage 1, {}/graph-1.onnx: input 'input' is float32 [n, 3, 16, 16]; state its mean and",
        ),
        (
            (*NUMBERS, "--stages", "\x1b[31m.onnx"),
            "--stages: expected once, with all graphs behind it",
        ),
        ((*NUMBERS, "--classes", "\x1b[31m.txt"), "?[31m.txt cannot be read"),
        ((*NUMBERS, "--resize", "18", "--crop-ratio", "0.9"), "--crop-ratio: goes without --resize"),
        ((*NUMBERS, "--crop-ratio", "1.5"), "--crop-ratio: expected a number from 0.25 to 1"),
        ((*NUMBERS, "--resize", "18", "--resize", "18", "--resize", "9"), "--resize: given 3 times; expected once, or"),
        ((*NUMBERS, "--filter", "lanczos"), "--filter: 'lanczos' is unknown; expected one of bicubic, bilinear"),
        ((*NUMBERS, "--gflops", "1"), "--gflops: '1'; expected 2 numbers with commas between them"),
        ((*NUMBERS, "--gflops", "1,-1"), "--gflops: expected numbers above 0, up to 1000000"),
        ((*NUMBERS, "--gflops", "1,1e308"), "--gflops: expected numbers above 0, up to 1000000"),
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
    assert line.startswith(f"msmlp: {said.format(folder.parent)}")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setattr(
        "msmlp.model.importing.folder.calibrate_on", lambda *_, **__: signal.raise_signal(signal.Signals(number))
    )
    handler = signal.getsignal(number)
    assert call(*words(folder.parent, tmp_path / "own", *NUMBERS)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "msmlp: interrupted"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == handler


def test_a_large_stage_before_a_small_one_is_warned_of(
    folder: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    there = folder.parent
    words = ["import", "--stages", there / "graph-2.onnx", there / "graph-1.onnx", "--classes", there / "labels.txt"]
    assert call(*words, "--data", there / "nowhere", "--out", tmp_path / "own", *NUMBERS) == 2
    assert "warning: stage 1 costs more than a later one; expected the cheapest first" in capsys.readouterr().err
