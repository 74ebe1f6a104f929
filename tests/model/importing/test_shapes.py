"""Shapes of what exporters write: numbers that are computed from shapes, and operators that onnx says nothing of."""

import numpy as np
from onnx import helper, numpy_helper

from msmlp.model.importing.shapes import shape_of, types_of
from tests.imported import Sketch, tensor


def test_a_token_that_is_expanded_to_the_batch_has_a_shape() -> None:
    """As torch's older exporter writes `torch.cat([token.expand(len(x), -1, -1), x], 1)`."""
    sketch = Sketch(inputs=[tensor("x", 4, 8)])
    for name, value in (("first", [0]), ("rest", [1, 8]), ("minus", [-1]), ("one", 1)):
        sketch.weight(name, np.array(value))
    sketch.weight("token", np.zeros((1, 1, 8), np.float32))
    sketch.node("Shape", ["x"], "shape")
    sketch.node("Gather", ["shape", "first"], "batch")
    sketch.node("Concat", ["batch", "rest"], "wanted", axis=0)
    sketch.node("Shape", ["wanted"], "rank")
    sketch.node("ConstantOfShape", ["rank"], "ones", value=numpy_helper.from_array(np.array([1])))
    sketch.node("Mul", ["ones", "minus"], "unknown")
    sketch.node("Equal", ["wanted", "unknown"], "is_unknown")
    sketch.node("Where", ["is_unknown", "ones", "wanted"], "sides")
    sketch.node("Expand", ["token", "sides"], "tokens")
    sketch.node("Concat", ["tokens", "x"], "both", axis=1)
    for batch in (1, 2):
        types = types_of(sketch.model(), batch)
        assert (shape_of(types["tokens"]), shape_of(types["both"])) == ((batch, 1, 8), (batch, 5, 8))


def test_a_group_norm_makes_what_it_reads() -> None:
    sketch = Sketch(inputs=[tensor("x", 8, 4, 4)])
    sketch.weight("scale", np.ones(8, np.float32))
    sketch.node("GroupNormalization", ["x", "scale", "scale"], "normal", num_groups=2)
    assert shape_of(types_of(sketch.model(opset=23), 1)["normal"]) == (1, 8, 4, 4)


def test_an_empty_constant_is_a_tensor_like_any_other() -> None:
    """Where an input is not wanted, exporters write one."""
    sketch = Sketch(inputs=[tensor("x", 3, 4, 4)])
    sketch.weight("scales", np.array([1, 1, 2, 2], np.float32))
    empty = helper.make_tensor("roi", 1, [0], [])
    sketch.node("Constant", [], "roi", value=empty)
    sketch.node("Resize", ["x", "roi", "scales"], "larger", mode="nearest")
    assert shape_of(types_of(sketch.model(), 1)["larger"]) == (1, 3, 8, 8)
