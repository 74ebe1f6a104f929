"""`msmlp export`: what the graphs hold, that they say what torch says, and when they are refused."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import msmlp
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.calibration.solvers import survivor_conditional
from msmlp.model.errors import DeviceError, OptionError, WeightsError
from msmlp.model.evaluate import evaluate
from msmlp.model.exits.policies import EXIT_POLICIES
from msmlp.model.exits.rule import exit_of
from msmlp.model.export.folder import TOLERANCES, export
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.weights import load_calibration, load_graphs, load_weights

TOLERANCE = TOLERANCES["float32"]


def built(folder: Path, name: str, max_batch: int) -> StageBackend:
    weights = load_weights(folder)
    settings = BackendSettings("cpu", capacity=max_batch, max_batch=max_batch)
    return select_backend(weights, load_calibration(weights), settings, name).build()


def both(folder: Path, pixels: NDArray[np.uint8], max_batch: int) -> tuple[Outputs, Outputs]:
    """What torch and ONNX Runtime say."""
    torch, onnx = (run_every_exit(built(folder, name, max_batch), pixels) for name in ("torch", "onnx"))
    return torch, onnx


@pytest.fixture
def copied(tiny_weights: Path, tmp_path: Path) -> Path:
    """Exported weights that a test may change."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def one_stage(one_stage_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(one_stage_weights, tmp_path_factory.mktemp("weights") / "one-stage"))


@pytest.mark.parametrize("bucket", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64])
def test_scores_are_torchs_at_every_bucket(tiny_weights: Path, digits: Any, bucket: int) -> None:
    torch, onnx = both(tiny_weights, digits.test[:64], bucket)
    assert np.abs(torch.scores - onnx.scores).max() <= TOLERANCE
    assert np.abs(torch.probabilities - onnx.probabilities).max() <= TOLERANCE


def test_every_digit_leaves_at_the_same_exit_with_the_same_label(tiny_weights: Path, digits: Any) -> None:
    torch, onnx = both(tiny_weights, digits.test, 64)
    thresholds = survivor_conditional(torch.scores, np.array([0.4, 0.3, 0.3]))
    left = exit_of(torch.scores, thresholds)
    assert set(left.tolist()) == {1, 2, 3}
    # Only a score this near its threshold may fall on the other side.
    near = (np.abs(torch.scores[:, :-1] - thresholds) <= TOLERANCE).any(axis=1)
    assert near.sum() <= 2
    assert (exit_of(onnx.scores, thresholds) == left)[~near].all()
    assert (torch.predictions == onnx.predictions).all()


@pytest.mark.parametrize("policy", ["margin", "entropy"])
def test_the_exit_policy_is_inside(one_stage: Path, digits_folder: Path, digits: Any, policy: str) -> None:
    calibrate(one_stage, digits_folder, "cpu", exit_policy=policy)
    export(one_stage)
    outputs = run_every_exit(built(one_stage, "onnx", 16), digits.test[:16])
    assert outputs.scores[:, 0] == pytest.approx(EXIT_POLICIES[policy](outputs.probabilities[:, 0]), abs=TOLERANCE)
    assert (outputs.scores < outputs.probabilities.max(axis=2)).all()


def test_a_graph_stands_alone(tiny_weights: Path, digits: Any) -> None:
    """As another server would load it: pixels in, any number of images, no file beside it."""
    manifest = load_weights(tiny_weights).manifest
    upstream: dict[str, NDArray[np.float32]] = {}
    for k, stage in enumerate(manifest.cascade.stages):
        path = tiny_weights / f"stage-{k + 1}.onnx"
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        for images in (1, 3, 7):
            inputs = {"pixels": digits.test[:images], **{name: each[:images] for name, each in upstream.items()}}
            features, probabilities, score = session.run(["features", "probabilities", "score"], inputs)
            assert features.shape == (images, manifest.cascade.tokens(k), stage.width)
            assert probabilities.shape == (images, manifest.cascade.classes)
            assert score.shape == (images,)
        upstream = {"upstream": features}


def test_a_graph_says_what_it_was_made_from(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    temperatures = load_calibration(weights).file.temperatures
    for k, temperature in enumerate(temperatures):
        graph = onnx.load(tiny_weights / f"stage-{k + 1}.onnx")
        facts = {entry.key: entry.value for entry in graph.metadata_props}
        assert facts == {
            "msmlp.stage": str(k + 1),
            "msmlp.model_sha256": weights.sha256,
            "msmlp.exit_policy": "max-probability",
            "msmlp.temperature": repr(temperature),
        }
        # Nothing of the machine that exported.
        assert str(Path(msmlp.__file__).resolve().parents[1]) not in str(graph)


def flip_a_byte(folder: Path) -> None:
    path = folder / "stage-2.onnx"
    graph = bytearray(path.read_bytes())
    graph[len(graph) // 2] ^= 1
    path.write_bytes(graph)


def change(name: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "calibration.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, "stage-2.onnx is damaged"),
        (lambda folder: (folder / "stage-3.onnx").unlink(), "stage-3.onnx is missing"),
        (lambda folder: (folder / "export.json").unlink(), "has no float32 ONNX graphs"),
        (lambda folder: (folder / "export.json").write_text("{}"), "export.json: format: Field required"),
        (lambda folder: (folder / "export.json").write_bytes(b"\xff"), "export.json is not JSON"),
        (change("temperatures", [1.5, 1.5, 1.5]), "do not match its temperatures"),
        (change("exit_policy", "entropy"), "do not match its exit_policy"),
    ],
)
def test_graphs_that_do_not_fit_are_refused_in_one_line(
    copied: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(copied)
    weights = load_weights(copied)
    with pytest.raises(WeightsError) as refused:
        load_graphs(weights, load_calibration(weights))
    assert said in str(refused.value)
    assert f"run msmlp export --weights {copied}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_graphs_of_other_weights_are_refused(copied: Path) -> None:
    weights = load_weights(copied)
    calibration = load_calibration(weights)
    with pytest.raises(WeightsError, match="do not match its model_sha256"):
        load_graphs(dataclasses.replace(weights, sha256="0" * 64), calibration)


def test_thresholds_may_change_without_exporting_again(copied: Path) -> None:
    weights = load_weights(copied)
    points = load_calibration(weights).file.model_dump(mode="json")["operating_points"]
    change("operating_points", points[:1])(copied)
    assert len(load_graphs(weights, load_calibration(weights))) == 3


def test_nothing_is_written_when_onnx_runtime_says_something_else(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setitem(TOLERANCES, "float32", -1.0)
    graphs = [before[f"stage-{k + 1}.onnx"] for k in range(3)]
    monkeypatch.setattr("msmlp.model.export.folder._graphs", lambda *_: graphs)
    with pytest.raises(DeviceError, match=r"stage \d differs from torch by .* nothing was written"):
        export(copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_stage_too_large_for_one_file_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msmlp.model.export.serialize.MAX_GRAPH_BYTES", 1000)
    monkeypatch.setattr(
        "msmlp.model.export.graph_stage.traced", lambda _, k, __: onnx.load(copied / f"stage-{k + 1}.onnx")
    )
    with pytest.raises(WeightsError, match=r"stage 1 takes \d+ bytes, an ONNX file holds 1000"):
        export(copied)


def test_weights_must_be_calibrated_first(copied: Path) -> None:
    (copied / "calibration.json").unlink()
    with pytest.raises(WeightsError, match="run msmlp calibrate"):
        export(copied)


def test_half_precision_stands_beside_the_other(one_stage: Path, digits_folder: Path) -> None:
    calibrate(one_stage, digits_folder, "cpu")
    export(one_stage)
    before = (one_stage / "stage-1.onnx").read_bytes()
    made = export(one_stage, "float16")
    assert [graph["file"] for graph in made["graphs"]] == ["stage-1.float16.onnx"]
    assert 0 < made["graphs"][0]["difference"] <= TOLERANCES["float16"]
    half = onnx.load(one_stage / "stage-1.float16.onnx")
    kinds = {each.name: each.type.tensor_type.elem_type for each in half.graph.output}
    assert kinds == {
        "features": onnx.TensorProto.FLOAT16,
        "probabilities": onnx.TensorProto.FLOAT,
        "score": onnx.TensorProto.FLOAT,
    }
    assert (one_stage / "stage-1.onnx").read_bytes() == before


def test_eight_bits_are_measured_on_the_images_held_out(one_stage: Path, digits_folder: Path) -> None:
    calibrate(one_stage, digits_folder, "cpu")
    made = export(one_stage, "int8", digits_folder)
    found = made["validation"]
    assert found == json.loads((one_stage / "export.int8.json").read_text())["validation"]
    assert found["images"] == 40
    weights = load_weights(one_stage)
    for dtype in ("float32", "int8"):
        measured = evaluate(one_stage, digits_folder, "val", "cpu", dtype, "torch" if dtype == "float32" else "onnx")
        assert found[dtype] == [each["accuracy"] for each in measured["exits"]]
    graph = onnx.load_from_string(load_graphs(weights, load_calibration(weights), "int8")[0])
    eight = [each.name for each in graph.graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
    assert sorted(name for name in eight if "zero_point" not in name) == [
        "blocks.0.channel1_quantized",
        "blocks.0.channel2_quantized",
    ]


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("int8", "data: int8 needs validation images for its ranges: --data PATH"),
        ("bfloat16", "dtype: 'bfloat16' is not supported; expected one of float32, float16, int8"),
    ],
)
def test_what_cannot_be_exported_is_said(copied: Path, dtype: str, said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        export(copied, dtype)


def test_data_that_nothing_would_read_is_refused(copied: Path, digits_folder: Path) -> None:
    with pytest.raises(OptionError, match="data: float16 graphs need no images"):
        export(copied, "float16", digits_folder)
