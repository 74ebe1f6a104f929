"""A stranger's ONNX graph, read and bounded before anything runs it: one file, standard operators, known shapes.

What does not fit is one line that names the tensor or node: ConfigError.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto

from msmlp.model.errors import ConfigError

MAX_BYTES = 2**30
MAX_NODES = 50_000
MAX_ELEMENTS = 2**27
"""Of any tensor, for one image."""
MIN_OPSET, MAX_OPSET = 13, onnx.defs.onnx_opset_version()
STANDARD = ("", "ai.onnx")
INSIDE = (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
"""What an attribute of a node may not have: the bodies of control flow, and tensors that are not counted here."""
NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
"""Types that numpy calls by other names."""

HINTS = {"Range": "; torch makes it of a network in channels_last: export it in torch.contiguous_format"}
"""What to do about operators whose tensors commonly have no fixed shape."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A checked graph.

    `shapes` has every tensor, with a batch of one image; `inputs` and `outputs` have those of the graph by their names,
    with their types as numpy calls them.
    """

    file: str
    content: bytes
    model: onnx.ModelProto
    shapes: dict[str, Shape]
    inputs: dict[str, str]
    outputs: dict[str, str]

    def shown(self, tensor: str) -> str:
        """The shape of a tensor with the batch, for a person."""
        return f"[{', '.join(map(str, ('n', *self.shapes[tensor][1:])))}]"


def read_graph(path: Path) -> Graph:
    """Read and check a graph; nothing but this file is opened.

    Raises:
        ConfigError: it is no graph, too large, or has what is not allowed.
    """
    content = _content(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's own, whose package is not imported here
        raise ConfigError(f"{path.name} is not an ONNX graph") from None
    try:
        _check_parts(model)
        inputs = [each for each in model.graph.input if each.name not in _constants(model)]
        for each in inputs:
            _check_input(each)
        onnx.checker.check_model(content)
        shapes = _shapes(model)
        outputs = {each.name: _type(each) for each in model.graph.output}
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ConfigError(f"{path.name} is not a valid graph: {' '.join(str(error).split())[:300]}") from None
    return Graph(path.name, content, model, shapes, {each.name: _type(each) for each in inputs}, outputs)


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a file")
        if found.st_size > MAX_BYTES:
            raise ConfigError(f"{path} has {found.st_size} bytes; expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None


def _check_parts(model: onnx.ModelProto) -> None:
    """Nodes and tensors one by one, before any library looks at the whole."""
    graph, opsets = model.graph, [each.version for each in model.opset_import if each.domain in STANDARD]
    if len(opsets) != 1 or not MIN_OPSET <= opsets[0] <= MAX_OPSET:
        found = opsets[0] if opsets else "none"
        raise ConfigError(f"opset {found}; expected {MIN_OPSET} to {MAX_OPSET}: export it again with a newer one")
    if model.functions:
        raise ConfigError(f"function {model.functions[0].name!r}; expected none: onnx.inliner can inline them")
    if len(graph.node) > MAX_NODES:
        raise ConfigError(f"{len(graph.node)} nodes; expected at most {MAX_NODES}")
    if graph.sparse_initializer or model.training_info:
        raise ConfigError("a sparse tensor or training information; expected neither")
    for node in graph.node:
        _check_node(node)
    for tensor in _tensors(graph):
        _check_tensor(tensor)


def _check_node(node: onnx.NodeProto) -> None:
    name = f"node {node.name or ', '.join(node.output)!r} ({node.op_type})"
    if node.domain not in STANDARD:
        raise ConfigError(f"{name} is of the domain {node.domain!r}; expected operators of ONNX itself")
    if any(each.type in INSIDE for each in node.attribute):
        raise ConfigError(f"{name} has a graph or a sparse tensor inside; expected no control flow")


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ConfigError(
            f"tensor {tensor.name!r} has its data in another file; expected all in one: torch has external_data=False"
        )
    if min(tensor.dims, default=0) < 0 or prod(tensor.dims) > MAX_ELEMENTS:
        found = f"tensor {tensor.name!r} has the shape {list(tensor.dims)}"
        raise ConfigError(f"{found}; expected at most {MAX_ELEMENTS} elements")


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for each in node.attribute:
            yield from (each.t, *each.tensors) if each.HasField("t") else each.tensors


def _constants(model: onnx.ModelProto) -> set[str]:
    return {each.name for each in model.graph.initializer}


def _check_input(value: onnx.ValueInfoProto) -> None:
    dims = value.type.tensor_type.shape.dim
    if not value.type.HasField("tensor_type") or not dims:
        raise ConfigError(f"input {value.name!r} is not a tensor of a known shape")
    if dims[0].HasField("dim_value"):
        raise ConfigError(f"input {value.name!r} has a fixed batch of {dims[0].dim_value}; expected a dynamic one")
    if not all(dim.dim_value > 0 for dim in dims[1:]):
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise ConfigError(f"input {value.name!r} has the shape {shown}; expected fixed numbers after the batch")


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return NAMES.get(kind) or str(TensorProto.DataType.Name(kind)).lower()


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every tensor for a batch of one. Nothing that the file says of them is believed."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    del one.graph.value_info[:]
    for each in one.graph.output:
        each.type.tensor_type.ClearField("shape")
    for each in one.graph.input:
        if each.name not in _constants(model):
            each.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(one, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {each.name: tuple(each.dims) for each in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in shape.dim)
    for node in inferred.node:
        for name in filter(None, node.output):
            if name not in shapes:
                what = f"tensor {name!r} of a {node.op_type} has no fixed shape; expected one after the batch"
                raise ConfigError(what + HINTS.get(node.op_type, ""))
            if prod(shapes[name]) > MAX_ELEMENTS or min(shapes[name], default=1) < 1:
                found = list(shapes[name])
                raise ConfigError(
                    f"tensor {name!r} has the shape {found}; expected 1 to {MAX_ELEMENTS} elements an image"
                )
    return shapes
