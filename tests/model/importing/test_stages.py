"""From graphs to stages: what is a picture, what is an answer, what is handed on, what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from msmlp.model.errors import ConfigError, OptionError
from msmlp.model.importing.graph import read_graph
from msmlp.model.importing.stages import Preprocessing, cascade_of
from msmlp.model.views import Resize, View
from tests.imported import MEAN, STD, Sketch, convolution, cut_network, head, network, picture_input, tensor, write

SAID = Preprocessing(mean=MEAN, std=STD)


def imported(folder: Path, *models: onnx.ModelProto, classes: int = 10, said: Any = SAID, **options: Any) -> Any:
    graphs = [read_graph(path) for path in write(folder, *models)]
    return cascade_of(graphs, classes, said if isinstance(said, list) else [said] * len(graphs), **options)


def drawn(size: int = 16, classes: int = 10) -> Sketch:
    sketch = Sketch()
    source = convolution(sketch, "conv", picture_input(sketch, size), (3, 4), 0)
    features = 4 * (size // 2) ** 2
    head(sketch, source, features, np.zeros((features, classes), np.float32))
    return sketch


def test_sizes_are_views_and_each_stage_reads_its_own(tmp_path: Path, digits: Any) -> None:
    cascade = imported(tmp_path, network(digits, 16, 4), network(digits, 32, 8), network(digits, 16, 8))
    assert cascade.views.views == (View(16, Resize(shorter_side=16)), View(32, Resize(shorter_side=32)))
    assert cascade.shape.reads == (0, 1, 0)
    assert cascade.shape.image == (3 * (16**2 + 32**2),)
    assert [stage.picture.layout for stage in cascade.stages] == ["NCHW"] * 3


def test_pixels_as_they_are_need_no_mean(tmp_path: Path, digits: Any) -> None:
    cascade = imported(tmp_path, network(digits, 16, 4, nhwc_uint8=True, softmax=True), said=Preprocessing())
    (stage,) = cascade.stages
    assert (stage.picture.layout, stage.picture.dtype) == ("NHWC", "uint8")
    assert cascade.shape.image == (16, 16, 3)


def test_features_are_handed_on_where_the_next_graph_reads_them(tmp_path: Path, digits: Any) -> None:
    cascade = imported(tmp_path, *cut_network(digits))
    assert (cascade.shape.reads, cascade.shape.features) == ((0, None), ((8, 8, 8), None))
    alone = imported(tmp_path, cut_network(digits)[0])
    assert alone.shape.features == (None,)


def test_multiply_adds_are_counted(tmp_path: Path) -> None:
    (stage,) = imported(tmp_path, drawn().model()).stages
    assert stage.gflops == pytest.approx((8 * 8 * 4 * 27 + 256 * 10) / 1e9)
    (told,) = imported(tmp_path, drawn().model(), costs=[4.1]).stages
    assert told.gflops == 4.1


@pytest.mark.parametrize(
    ("said", "view"),
    [
        (Preprocessing(MEAN, STD, shorter_side=20, filter="bilinear"), Resize(shorter_side=20, filter="bilinear")),
        # As timm: 16 / 0.875 = 18.28...
        (Preprocessing(MEAN, STD, crop_ratio=0.875), Resize(shorter_side=18)),
        (SAID, Resize(shorter_side=16)),
    ],
)
def test_how_pictures_are_scaled(tmp_path: Path, said: Preprocessing, view: Resize) -> None:
    assert imported(tmp_path, drawn().model(), said=said).views.views == (View(16, view),)


def constant() -> onnx.ModelProto:
    """The answers are a weight."""
    sketch = drawn()
    sketch.nodes[-1].output[0] = "sums"
    sketch.weights.append(numpy_helper.from_array(np.zeros((1, 10), np.float32), "logits"))
    return sketch.model()


def five_rows() -> onnx.ModelProto:
    sketch = drawn()
    sketch.nodes[-1].output[0] = "sums"
    sketch.node("Concat", ["sums"] * 5, "logits", axis=0)
    return sketch.model()


def absurd_product() -> onnx.ModelProto:
    """A few bytes that ask for gigabytes: pictures are copied along a dimension."""
    sketch = drawn()
    sketch.weights.append(numpy_helper.from_array(np.array([1, 10**4, 16, 16]), "many"))
    sketch.node("Tile", ["input", "many"], "huge")
    return sketch.model()


def absurd_constants() -> onnx.ModelProto:
    """None is too large alone."""
    sketch = drawn()
    sketch.weights.append(numpy_helper.from_array(np.array([2**14, 2**13]), "sides"))
    for k in range(20):
        sketch.node("ConstantOfShape", ["sides"], f"large-{k}")
    return sketch.model()


def recurrent() -> onnx.ModelProto:
    sketch = drawn()
    for name, shape in (("rows", (4, -1, 64)), ("w", (1, 16, 64)), ("r", (1, 16, 4))):
        value = np.array(shape) if name == "rows" else np.zeros(shape, np.float32)
        sketch.weights.append(numpy_helper.from_array(value, name))
    sketch.node("Reshape", ["conv", "rows"], "sequence")
    sketch.node("LSTM", ["sequence", "w", "r"], "more", hidden_size=4)
    return sketch.model()


def two_inputs() -> onnx.ModelProto:
    sketch = drawn()
    sketch.inputs.append(tensor("more", 3))
    return sketch.model()


def oblong() -> onnx.ModelProto:
    sketch = Sketch()
    sketch.inputs.append(tensor("input", 3, 16, 24))
    source = convolution(sketch, "conv", "input", (3, 4), 0)
    head(sketch, source, 4 * 8 * 12, np.zeros((4 * 8 * 12, 10), np.float32))
    return sketch.model()


def of_int32() -> onnx.ModelProto:
    sketch = Sketch()
    sketch.inputs.append(tensor("input", 3, 16, 16, kind=TensorProto.INT32))
    sketch.node("Cast", ["input"], "cast", to=TensorProto.FLOAT)
    source = convolution(sketch, "conv", "cast", (3, 4), 0)
    head(sketch, source, 256, np.zeros((256, 10), np.float32))
    return sketch.model()


def adds_nothing() -> onnx.ModelProto:
    sketch = Sketch()
    picture_input(sketch, 16)
    sketch.node("ReduceMean", ["input"], "means", axes=[2, 3], keepdims=0)
    sketch.weights.append(numpy_helper.from_array(np.zeros((1, 7), np.float32), "zeros"))
    sketch.node("ReduceMean", ["means"], "mean", axes=[1])
    sketch.node("Add", ["mean", "zeros"], "logits")
    sketch.outputs.append(tensor("logits", 7))
    return sketch.model()


@pytest.mark.parametrize(
    ("make", "classes", "said", "text"),
    [
        (constant, 10, SAID, r"expected one output of float32 \[n, 10\].*got 'logits' float32 \[1, 10\]"),
        (five_rows, 10, SAID, r"expected one output of float32 \[n, 10\].*got 'logits' float32 \[5n, 10\]"),
        (
            absurd_product,
            10,
            SAID,
            r"its tensors have \d+ numbers at once in a batch of 256; expected at most",
        ),
        (absurd_constants, 10, SAID, r"its tensors have 2684\d+ numbers at once"),
        (recurrent, 10, SAID, "cannot count the multiply-adds of LSTM; give --gflops"),
        (
            lambda: drawn().model(),
            10,
            Preprocessing(MEAN, STD, shorter_side=20_000),
            "the shorter side is scaled to 20000 pixels for a crop of 16; expected 16 to 64",
        ),
        (two_inputs, 10, SAID, "expected one input, for pictures, got 'input', 'more'"),
        (oblong, 10, SAID, r"input 'input' is float32 \[n, 3, 16, 24\]; expected \[n, 3, size, size\]"),
        (of_int32, 10, SAID, r"input 'input' is int32 \[n, 3, 16, 16\]; expected uint8, float32 or float16"),
        (adds_nothing, 7, SAID, "no multiply-adds were found in it; state them with --gflops"),
        (
            lambda: drawn().model(),
            11,
            SAID,
            r"expected one output of float32 \[n, 11\].*got 'logits' float32 \[n, 10\]",
        ),
        (lambda: drawn().model(), 10, Preprocessing(), "state its mean and standard deviation.* with --mean and --std"),
        (
            lambda: drawn().model(),
            10,
            Preprocessing(MEAN, STD, shorter_side=15),
            "the shorter side is scaled to 15 pixels for a crop of 16; expected 16 to 64",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, make: Any, classes: int, said: Preprocessing, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"stage 1, .*/graph-1\.onnx: .*{text}"):
        imported(tmp_path, make(), classes=classes, said=said)


def test_upstream_must_fit_what_the_stage_before_has(tmp_path: Path, digits: Any) -> None:
    first, second = cut_network(digits)
    _, other = cut_network(digits, channels=4)
    with pytest.raises(
        ConfigError, match=r"stage 2, .*'upstream' is float32 \[n, 4, 8, 8\]; 'features' of .*/graph-1.onnx is"
    ):
        imported(tmp_path, first, other)
    with pytest.raises(
        ConfigError, match=r"stage 1, .*the next stage reads upstream features; expected an output 'features'"
    ):
        imported(tmp_path, network(digits, 16, 4), second)
    with pytest.raises(ConfigError, match=r"stage 1, .*expected one input, for pictures, got 'upstream'"):
        imported(tmp_path, second)


def test_no_more_stages_than_a_calibration_can_weigh(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="7 stages; expected at most 6"):
        imported(tmp_path, *[drawn().model()] * 7)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "--mean: expected numbers from 0 to 1, of pixels / 255"),
        ({"crop_ratio": 1e-310}, "--crop-ratio: expected a number from 0.25 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_option(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Preprocessing(**options)


def test_a_mean_of_pixels_that_are_read_as_they_are_is_refused(tmp_path: Path, digits: Any) -> None:
    whole, normal = network(digits, 16, 4, nhwc_uint8=True), network(digits, 16, 4)
    with pytest.raises(OptionError, match="--mean: every graph takes uint8, pixels as they are"):
        imported(tmp_path, whole)
    # Said once for all stages, of which one needs it.
    assert len(imported(tmp_path, whole, normal).stages) == 2


def test_a_long_name_is_one_line(tmp_path: Path) -> None:
    sketch = drawn()
    sketch.nodes[-1].output[0] = sketch.outputs[-1].name = "x" * 501
    with pytest.raises(ConfigError, match=r"stage 1, .*: output: String should have at most 500 characters$"):
        imported(tmp_path, sketch.model())
