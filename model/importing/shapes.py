"""The shape of every tensor of a graph for a batch of a given size. Nothing that the file says of them is believed.

Node by node: what a node makes of shapes is a small number of integers, which is computed here, so that the next nodes
can ask for it. Exporters write much of that kind: `x.expand(len(x), 10)` is a dozen nodes.
"""

import re
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper

from msmlp.model.errors import ConfigError
from msmlp.model.export.source import opset_of

FEW = 1024
"""Numbers of a tensor that is computed here."""
COMPUTED = re.compile(
    "Add|And|Cast|Ceil|Concat|Constant|ConstantOfShape|Div|Equal|Expand|Floor|Gather|Greater|Identity|Less|Max|Min|Mod|"
    "Mul|Neg|Not|Or|Pow|Range|ReduceMax|ReduceMin|ReduceProd|ReduceSum|Reshape|Slice|Split|Sqrt|Squeeze|Sub|Unsqueeze|Where"
)
AS_READ = ("GroupNormalization", "MeanVarianceNormalization")
"""Operators that make what they read, of which the onnx package does not say so."""
ADVICE = "torch.onnx.export(..., dynamo=True) may give it one"

Types = dict[str, TypeProto]
Values = dict[str, TensorProto]


def types_of(model: onnx.ModelProto, batch: int) -> Types:
    """The type of every tensor with all its dimensions.

    ConfigError for a tensor whose shape cannot be known; onnx's own errors for operators that do not fit together.
    """
    graph, opset = model.graph, opset_of(model)
    types = {each.name: helper.make_tensor_type_proto(each.data_type, each.dims) for each in graph.initializer}
    values = {each.name: each for each in graph.initializer if prod(each.dims) <= FEW}
    for each in graph.input:
        if each.name not in types:
            types[each.name] = TypeProto()
            types[each.name].CopyFrom(each.type)
            types[each.name].tensor_type.shape.dim[0].dim_value = batch
    for node in graph.node:
        made = _made(node, opset, types, values)
        for name in filter(None, node.output):
            if name not in made or not _is_known(made[name]):
                raise ConfigError(f"tensor {name!r} of a {node.op_type} has no fixed shape; expected one: {ADVICE}")
        types.update(made)
        values.update(_values(node, opset, types, values))
    return types


def shape_of(kind: TypeProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in kind.tensor_type.shape.dim)


def _made(node: onnx.NodeProto, opset: int, types: Types, values: Values) -> Types:
    read = {name: types[name] for name in node.input if name in types}
    if missing := next((name for name in node.input if name and name not in read), None):
        raise ConfigError(f"tensor {missing!r} is made by no node before it is read")
    if node.op_type in AS_READ:
        return {node.output[0]: read[node.input[0]]}
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    own = [helper.make_opsetid("", opset)]
    data = {name: values[name] for name in read if name in values}
    made: Types = onnx.shape_inference.infer_node_outputs(schema, node, read, data, opset_imports=own)
    return made


def _is_known(kind: TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _values(node: onnx.NodeProto, opset: int, types: Types, values: Values) -> Values:
    """What a node makes, if that is few numbers of few numbers."""
    if node.op_type in ("Shape", "Size"):
        shape = shape_of(types[node.input[0]])
        ends = {each.name: each.i for each in node.attribute}
        found = np.array(shape[ends.get("start", 0) : ends.get("end")] if node.op_type == "Shape" else prod(shape))
        return {node.output[0]: numpy_helper.from_array(found.astype(np.int64), node.output[0])}
    outputs = [name for name in node.output if name]
    if not COMPUTED.fullmatch(node.op_type) or any(prod(shape_of(types[name])) > FEW for name in outputs):
        return {}
    if any(name and name not in values for name in node.input):
        return {}
    from onnx.reference import ReferenceEvaluator

    infos = [helper.make_value_info(name, types[name]) for name in outputs]
    graph = helper.make_graph([node], "one", [], infos, [values[name] for name in node.input if name])
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            computed = ReferenceEvaluator(alone).run(None, {})
    except Exception:  # whatever numpy says of numbers that do not fit: then they are not known
        return {}
    return {name: numpy_helper.from_array(np.asarray(each), name) for name, each in zip(outputs, computed, strict=True)}
