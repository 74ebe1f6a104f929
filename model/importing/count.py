"""Multiply-adds of a graph, by fvcore's rules, as for our own networks (model/nn/config.py).

Convolutions and products cost their multiply-adds, a LayerNormalization 5 per element; all else is free.
"""

from math import prod

import numpy as np
import onnx

from msmlp.model.errors import ConfigError
from msmlp.model.importing.graph import Graph, Shape
from msmlp.model.nn.config import LAYER_NORM

WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Which input is the weight of a convolution, [out, in / groups, *kernel]."""
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")
UNCOUNTED = ("DeformConv", "GRU", "LSTM", "RNN")


def gflops(graph: Graph) -> float:
    """Multiply-adds / 1e9 of one image; 0 for a graph without any product that is known here. ConfigError for one with
    work that is not counted."""
    return sum(_multiply_adds(node, graph.shapes) for node in graph.model.graph.node) / 1e9


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    kind, read = node.op_type, [shapes.get(name, ()) for name in node.input]
    made = shapes[node.output[0]] if node.output and node.output[0] else ()
    if kind in WEIGHTS:
        return prod(made) * prod(read[WEIGHTS[kind]][1:])
    if kind == "ConvTranspose":  # weight [in, out / groups, *kernel]
        return prod(read[0]) * prod(read[1][1:])
    if kind in PRODUCTS:
        return prod(made) * read[0][-1]
    if kind == "Gemm":
        first = next((each.i for each in node.attribute if each.name == "transA"), 0)
        return prod(made) * read[0][0 if first else 1]
    if kind == "Attention" and not any(node.input[4:]):  # queries with keys, and their shares with values
        return read[1][-2] * (prod(read[0]) + prod(made))
    if kind == "Einsum" and len(read) <= 2:
        return _einsum(node, read)
    if kind in (*UNCOUNTED, "Attention", "Einsum"):
        raise ConfigError(f"cannot count the multiply-adds of {kind}; give --gflops")
    return LAYER_NORM * prod(made) if kind == "LayerNormalization" else 0


def _einsum(node: onnx.NodeProto, read: list[Shape]) -> int:
    equation = next(each.s.decode() for each in node.attribute if each.name == "equation").replace(" ", "")
    sizes: dict[str, int] = {}
    others: list[Shape] = []
    for term, shape in zip(equation.partition("->")[0].split(","), read, strict=True):
        first, _, last = term.partition("...")
        after = len(shape) - len(last)
        sizes.update(zip(first + last, shape[: len(first)] + shape[after:], strict=True))
        others.append(shape[len(first) : after])
    return prod(sizes.values()) * prod(np.broadcast_shapes(*others)) * (len(read) > 1)
