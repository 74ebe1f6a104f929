"""Networks that did not come from here, as ONNX graphs: convolutions drawn at random, and a head that was fitted to the
digits by least squares. Small, and right about most digits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS = tuple(str(digit) for digit in range(10))
OPSET = 17


@dataclass
class Sketch:
    """A graph while it is drawn."""

    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def weight(self, name: str, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def model(self, opset: int = OPSET) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "network", self.inputs, self.outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def tensor(name: str, *dims: int, kind: int = TensorProto.FLOAT, batch: int | str = "batch") -> Any:
    return helper.make_tensor_value_info(name, kind, [batch, *dims])


def picture_input(sketch: Sketch, size: int, *, nhwc_uint8: bool = False) -> str:
    """Pictures as floats, channels first, whatever the graph's input is."""
    if not nhwc_uint8:
        sketch.inputs.append(tensor("input", 3, size, size))
        return "input"
    sketch.inputs.append(tensor("input", size, size, 3, kind=TensorProto.UINT8))
    sketch.node("Cast", ["input"], "cast", to=TensorProto.FLOAT)
    sketch.node("Div", ["cast", sketch.weight("white", np.array(255, dtype=np.float32))], "scaled")
    return sketch.node("Transpose", ["scaled"], "first", perm=[0, 3, 1, 2])


def convolution(sketch: Sketch, name: str, source: str, channels: tuple[int, int], seed: int, stride: int = 2) -> str:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, (2 / (9 * channels[0])) ** 0.5, (channels[1], channels[0], 3, 3)).astype(np.float32)
    bias = rng.normal(0, 0.1, channels[1]).astype(np.float32)
    names = [source, sketch.weight(f"{name}.weight", weight), sketch.weight(f"{name}.bias", bias)]
    made = sketch.node("Conv", names, f"{name}.sums", strides=[stride, stride], pads=[1, 1, 1, 1])
    return sketch.node("Relu", [made], name)


def head(sketch: Sketch, source: str, features: int, fitted: NDArray[np.float32], *, softmax: bool = False) -> None:
    """Flatten → product → an output of [batch, classes]; `fitted` [features, classes]."""
    sketch.node("Flatten", [source], "flat", axis=1)
    name = "sums" if softmax else "logits"
    sketch.node("MatMul", ["flat", sketch.weight("head", fitted)], name)
    if softmax:
        sketch.node("Softmax", ["sums"], "answers", axis=1)
    sketch.outputs.append(tensor("answers" if softmax else "logits", fitted.shape[1]))
    assert fitted.shape[0] == features


def floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [n, size, size, 3] as torchvision's networks read them."""
    scaled = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)


def run(model: onnx.ModelProto, output: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([output], inputs)[0]
    return found


def fit(features: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """A head [features, classes] by ridge regression."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    wanted = 4.0 * np.eye(len(LABELS))[labels] - 1
    found = np.linalg.solve(flat.T @ flat + 10 * np.eye(flat.shape[1]), flat.T @ wanted)
    return found.astype(np.float32)


def scaled(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    resized = (Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels)
    return np.stack([np.asarray(image) for image in resized])


def network(digits: Any, size: int, channels: int, seed: int = 0, **options: bool) -> onnx.ModelProto:
    """Two convolutions and a head for pictures of `size`; options: `softmax`, `nhwc_uint8`."""
    nhwc = options.get("nhwc_uint8", False)
    images = scaled(digits.train, size)
    pixels: NDArray[Any] = images if nhwc else floats(images)

    def drawn(fitted: NDArray[np.float32] | None) -> onnx.ModelProto:
        sketch = Sketch()
        source = convolution(sketch, "conv1", picture_input(sketch, size, nhwc_uint8=nhwc), (3, channels), seed)
        source = convolution(sketch, "conv2", source, (channels, channels), seed + 1)
        if fitted is None:
            sketch.outputs.append(tensor(source, channels, size // 4, size // 4))
        else:
            head(sketch, source, channels * (size // 4) ** 2, fitted, softmax=options.get("softmax", False))
        return sketch.model()

    return drawn(fit(run(drawn(None), "conv2", {"input": pixels}), digits.train_labels))


def cut_network(digits: Any, size: int = 16, channels: int = 8) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """One network in two: the first hands on `features` [channels, size / 2, size / 2], all that the second reads."""
    pixels = floats(scaled(digits.train, size))

    def first(fitted: NDArray[np.float32] | None) -> onnx.ModelProto:
        sketch = Sketch()
        source = convolution(sketch, "conv1", picture_input(sketch, size), (3, channels), 0)
        sketch.node("Identity", [source], "features")
        sketch.outputs.append(tensor("features", channels, size // 2, size // 2))
        pooled = sketch.node("AveragePool", [source], "pooled", kernel_shape=[4, 4], strides=[4, 4])
        if fitted is None:
            sketch.outputs.append(tensor("pooled", channels, size // 8, size // 8))
        else:
            head(sketch, pooled, channels * (size // 8) ** 2, fitted)
        return sketch.model()

    def second(fitted: NDArray[np.float32] | None) -> onnx.ModelProto:
        sketch = Sketch()
        sketch.inputs.append(tensor("upstream", channels, size // 2, size // 2))
        source = convolution(sketch, "conv2", "upstream", (channels, 32), 1)
        if fitted is None:
            sketch.outputs.append(tensor(source, 32, size // 4, size // 4))
        else:
            head(sketch, source, 32 * (size // 4) ** 2, fitted)
        return sketch.model()

    trunk, inputs = first(None), {"input": pixels}
    features, pooled = run(trunk, "features", inputs), run(trunk, "pooled", inputs)
    labels = digits.train_labels
    return first(fit(pooled, labels)), second(fit(run(second(None), "conv2", {"upstream": features}), labels))


def write_data(folder: Path, digits: Any) -> tuple[Path, Path]:
    """The file of class names, and a folder val/<class>/*.png of digits that no head was fitted to."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, data = folder / "labels.txt", folder / "photos"
    labels.write_text("\n".join(LABELS) + "\n")
    for number, (image, label) in enumerate(zip(digits.test, digits.test_labels, strict=True)):
        into = data / "val" / LABELS[label]
        into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(into / f"{number:03}.png")
    return labels, data


def write(folder: Path, *models: onnx.ModelProto) -> list[Path]:
    """The graphs as files `graph-1.onnx`, ..."""
    paths = [folder / f"graph-{k}.onnx" for k in range(1, len(models) + 1)]
    for path, model in zip(paths, models, strict=True):
        onnx.save(model, path)
    return paths


def imported(out: Path, digits: Any, *models: onnx.ModelProto, **options: Any) -> Path:
    """`msmlp import` of these models into the folder `out`."""
    from msmlp.model.importing.folder import ImportOptions, import_cascade
    from msmlp.model.importing.stages import Preprocessing

    labels, data = write_data(out.parent, digits)
    stages = write(out.parent, *models)
    whole = all(model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8 for model in models)
    usual = Preprocessing() if whole else Preprocessing(mean=MEAN, std=STD)
    said = options.pop("preprocessing", None) or [usual] * len(models)
    import_cascade(ImportOptions(stages, said, labels, data, out, device="cpu", **options))
    return out
