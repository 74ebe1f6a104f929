"""Multiply-adds of a graph, by fvcore's rules, as for our own networks (model/nn/config.py).

Convolutions and products cost their multiply-adds, a LayerNormalization 5 per element; all else is free.
"""

from math import prod

import onnx

from msmlp.model.importing.graph import Graph, Shape
from msmlp.model.nn.config import LAYER_NORM


def gflops(graph: Graph) -> float:
    """Multiply-adds / 1e9 of one image; 0 for a graph without any product that is known here."""
    return sum(_multiply_adds(node, graph.shapes) for node in graph.model.graph.node) / 1e9


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    read, made = [shapes.get(name, ()) for name in node.input], shapes[node.output[0]]
    if node.op_type == "Conv":  # weight [out, in / groups, *kernel]
        return prod(made) * prod(read[1][1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, *kernel]
        return prod(read[0]) * prod(read[1][1:])
    if node.op_type == "MatMul":
        return prod(made) * read[0][-1]
    if node.op_type == "Gemm":
        first = next((each.i for each in node.attribute if each.name == "transA"), 0)
        return prod(made) * read[0][0 if first else 1]
    if node.op_type == "Einsum":
        equation = next(each.s.decode() for each in node.attribute if each.name == "equation").replace(" ", "")
        terms = equation.partition("->")[0].split(",")
        sizes = {
            letter: size
            for term, shape in zip(terms, read, strict=True)
            for letter, size in zip(term, shape, strict=False)
        }
        return prod(sizes.values()) * (len(terms) > 1)
    return LAYER_NORM * prod(made) if node.op_type == "LayerNormalization" else 0
