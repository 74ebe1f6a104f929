"""A stranger's ONNX graph, part by part, before any library looks at the whole: one file, and standard operators.

What is not allowed is one line that names the tensor or node: ConfigError. Graphs are checked when they are imported,
and again whenever stages are made of them: a folder may come from a stranger too.
"""

from collections.abc import Iterable, Iterator
from math import prod

import onnx
from onnx import TensorProto

from msmlp.model.errors import ConfigError

MAX_PARTS = 50_000
"""Of any kind: nodes, inputs, outputs, weights."""
MAX_ELEMENTS = 2**30
"""Of any one weight."""
MIN_OPSET, MAX_OPSET = 13, onnx.defs.onnx_opset_version()
STANDARD = ("", "ai.onnx")
INSIDE = frozenset(("g", "graphs", "sparse_tensor", "sparse_tensors"))
"""What an attribute of a node may not have: the bodies of control flow, and tensors that are not counted here."""


def parsed(content: bytes) -> onnx.ModelProto:
    """A graph whose parts are allowed.

    Raises:
        ConfigError: it is not a graph, or has what is not allowed.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's own, whose package is not imported here
        raise ConfigError("not an ONNX graph") from None
    graph = model.graph
    opset_of(model)
    if model.functions:
        raise ConfigError(f"function {model.functions[0].name!r}; expected none: onnx.inliner can inline them")
    for kind, parts in (
        ("nodes", graph.node),
        ("inputs", graph.input),
        ("outputs", graph.output),
        ("weights", graph.initializer),
    ):
        if len(parts) > MAX_PARTS:
            raise ConfigError(f"{len(parts)} {kind}; expected at most {MAX_PARTS}")
    if graph.sparse_initializer or model.training_info:
        raise ConfigError("a sparse tensor or training information; expected neither")
    del graph.value_info[:]  # what the file says of tensors is not believed
    values = (*graph.input, *graph.output)
    _check_text((*(each.name for each in values), *(each.name for each in graph.initializer)))
    _check_text(dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim)
    for node in graph.node:
        _check_text((node.name, node.op_type, node.domain, *node.input, *node.output))
        _check_node(node)
    for tensor in _tensors(graph):
        _check_tensor(tensor)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph asks for; ConfigError for one that is not supported."""
    opsets = [each.version for each in model.opset_import if each.domain in STANDARD]
    if len(opsets) != 1 or not MIN_OPSET <= opsets[0] <= MAX_OPSET:
        found = " and ".join(map(str, opsets)) or "none"
        raise ConfigError(f"opset {found}; expected one from {MIN_OPSET} to {MAX_OPSET}: export the network with that")
    return opsets[0]


def _check_text(names: Iterable[object]) -> None:
    if not all(isinstance(each, str) for each in names):  # protobuf gives bytes then
        raise ConfigError("a name that is not UTF-8 text")


def _check_node(node: onnx.NodeProto) -> None:
    name = f"node {node.name or ', '.join(node.output)!r} ({node.op_type})"
    if node.domain not in STANDARD:
        raise ConfigError(f"{name} is of the domain {node.domain!r}; expected operators of ONNX itself")
    # Whatever the attribute's type says.
    if any(field.name in INSIDE for each in node.attribute for field, _ in each.ListFields()):
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
