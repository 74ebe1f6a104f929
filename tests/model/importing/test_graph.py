"""Strangers' graphs: what is refused, with one line that names it, before anything runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msmlp.model.errors import ConfigError
from msmlp.model.export import source
from msmlp.model.importing.graph import read_graph
from tests.imported import Sketch, convolution, picture_input, tensor, write


def drawn() -> Sketch:
    """A small graph that is read."""
    sketch = Sketch()
    source = convolution(sketch, "conv", picture_input(sketch, 16), (3, 4), 0)
    sketch.node("ReduceMean", [source], "logits", axes=[2, 3], keepdims=0)
    sketch.outputs.append(tensor("logits", 4))
    return sketch


def graph(change: Callable[[Sketch], Any] = lambda sketch: None, **options: Any) -> onnx.ModelProto:
    sketch = drawn()
    change(sketch)
    return sketch.model(**options)


def test_a_graph_is_read_with_the_shapes_of_its_tensors(tmp_path: Path) -> None:
    (path,) = write(tmp_path, graph())
    found = read_graph(path)
    assert (found.inputs, found.outputs) == ({"input": "float32"}, {"logits": "float32"})
    assert found.shapes["conv"] == (1, 4, 8, 8)
    assert found.shapes["conv.weight"] == (4, 3, 3, 3)
    assert found.content == path.read_bytes()


def external(model: onnx.ModelProto) -> None:
    """The weights stand in another file, outside the folder."""
    one = model.graph.initializer[0]
    one.ClearField("raw_data")
    one.data_location = TensorProto.EXTERNAL
    one.external_data.add(key="location", value="../../../../etc/passwd")


def external_constant(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["hidden"], name="hidden", value=value))


def custom(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node.append(helper.make_node("Run", ["logits"], ["more"], name="it", domain="com.evil"))


def branch(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1])
    node = helper.make_node("Constant", [], ["inside"], value_floats=[1.0])
    body = helper.make_graph([node], "body", [], [value])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["more"], name="if", then_branch=body, else_branch=body))


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "twice", ["x"], ["y"], [node], opsets))


def absurd_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**20, 2**20, 3, 3]


def unknown_shape(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("NonZero", ["logits"], ["places"], name="places"))


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10**9]))


def lies(model: onnx.ModelProto) -> None:
    """The weight's bytes are fewer than its shape says."""
    model.graph.initializer[0].dims[:] = [4, 3, 3, 300]


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def dynamic_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def no_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def hidden_branch(model: onnx.ModelProto) -> None:
    """The attribute says that it is a number."""
    branch(model)
    for each in model.graph.node[-1].attribute:
        each.type = onnx.AttributeProto.FLOAT


def twice_the_batch(model: onnx.ModelProto) -> None:
    """[n, n], which grows faster than the batch."""
    model.graph.node.append(helper.make_node("Transpose", ["logits"], ["turned"]))
    model.graph.node.append(helper.make_node("MatMul", ["logits", "turned"], ["square"]))


def unheard_of_type(model: onnx.ModelProto) -> None:
    """Of a second input, which a cast makes numbers of."""
    model.graph.input.append(helper.make_tensor_value_info("odd", 99, ["batch", 4]))
    model.graph.node.append(helper.make_node("Cast", ["odd"], ["even"], name="cast", to=TensorProto.FLOAT))


def many_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.extend([numpy_helper.from_array(np.zeros(1, np.float32), "x")] * source.MAX_PARTS)


def many_nodes(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["logits"], ["x"])
    model.graph.node.extend([node] * source.MAX_PARTS)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (external, r"tensor 'conv.weight' has its data in another file; expected all in one"),
        (external_constant, r"tensor 'hidden' has its data in another file"),
        (custom, r"node 'it' \(Run\) is of the domain 'com.evil'; expected operators of ONNX itself"),
        (branch, r"node 'if' \(If\) has a graph or a sparse tensor inside; expected no control flow"),
        (function, r"function 'twice'; expected none"),
        (absurd_weight, r"tensor 'conv.weight' has the shape \[1048576, 1048576, 3, 3\]; expected at most"),
        (hidden_branch, r"node 'if' \(If\) has a graph or a sparse tensor inside"),
        (
            twice_the_batch,
            r"tensor 'square' has the shape \[1, 1\] for one picture and \[2, 2\] for two",
        ),
        (unheard_of_type, r"is not a valid graph: .*99"),
        (many_weights, r"\d+ weights; expected at most 50000"),
        (unknown_shape, r"tensor 'places' of a NonZero has no fixed shape; .*dynamo=True"),
        (sparse, r"a sparse tensor or training information; expected neither"),
        (lies, r"is not a valid graph: .*conv.weight"),
        (fixed_batch, r"input 'input' has a fixed batch of 1; expected a dynamic one"),
        (
            dynamic_size,
            r"input 'input' has the shape \['batch', 3, 'height', 16\]; expected fixed numbers after the batch",
        ),
        (no_shape, r"input 'input' is not a tensor of a known shape"),
        (many_nodes, r"\d+ nodes; expected at most 50000"),
    ],
)
def test_it_is_refused_in_one_line_that_names_it(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], said: str
) -> None:
    model = graph()
    spoil(model)
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=said) as refused:
        read_graph(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_tensors_are_counted_that_live_at_once_and_those_that_always_do(tmp_path: Path) -> None:
    (path,) = write(tmp_path, graph())
    found = read_graph(path)
    # The sums of the convolution and their Relu; the picture is no longer needed then.
    assert found.live == max(3 * 16 * 16 + 4 * 8 * 8, 2 * 4 * 8 * 8)
    assert found.constants == 4 * 3 * 3 * 3 + 4


def test_the_default_domain_has_two_names(tmp_path: Path) -> None:
    model = graph()
    model.opset_import[0].domain = "ai.onnx"
    assert read_graph(*write(tmp_path, model)).shown("logits") == "[n, 4]"


@pytest.mark.parametrize("opset", [9, 12, 999])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph(opset=opset).SerializeToString())
    with pytest.raises(ConfigError, match=rf"opset {opset}; expected one from 13 to \d+"):
        read_graph(path)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    for content in (b"", b"\xff" * 100, b"hello", b"\x89PNG\r\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"graph\.onnx"):
            read_graph(path)


def test_names_are_text(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph().SerializeToString().replace(b"conv.sums", b"conv.\xff\xfems"))
    with pytest.raises(ConfigError, match="a name that is not UTF-8 text"):
        read_graph(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.touch()
    os.truncate(path, 2**31)
    with pytest.raises(ConfigError, match=r"has 2147483648 bytes; expected at most 1073741824"):
        read_graph(path)


def test_a_pipe_and_a_missing_file_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "empty.onnx").touch()
    for name, said in (("pipe.onnx", "is not a file"), ("none.onnx", "cannot be read"), ("empty.onnx", "is empty")):
        with pytest.raises(ConfigError, match=said):
            read_graph(tmp_path / name)
