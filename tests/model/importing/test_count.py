"""Multiply-adds by hand, of operators that few graphs have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from msmlp.model.errors import ConfigError
from msmlp.model.importing.count import gflops
from msmlp.model.importing.graph import read_graph
from tests.imported import Sketch, tensor, write

BYTE, FLOAT = TensorProto.UINT8, TensorProto.FLOAT
SCALE = ("scale", "zero")


def counted(folder: Path, kind: str, inputs: list[str], read: int = FLOAT, made: int = FLOAT, **more: Any) -> float:
    """Of one node over x [n, 8, 16, 16], q [n, 4, 16, 8] and weights."""
    sketch = Sketch(inputs=[tensor("x", 8, 16, 16, kind=read), tensor("q", 4, 16, 8)])
    whole: Any = np.uint8 if read == BYTE else np.float32
    sketch.weight("square", np.ones((16, 16), whole))
    sketch.weight("kernel", np.ones((4, 8, 3, 3), whole))
    sketch.weight("scale", np.array(1, np.float32))
    sketch.weight("zero", np.array(0, np.uint8))
    sketch.node(kind, inputs, "made", **more)
    sketch.outputs.append(tensor("made", *"abc", kind=made))
    return 1e9 * gflops(read_graph(*write(folder, sketch.model(opset=23))))


@pytest.mark.parametrize(
    ("kind", "inputs", "wanted", "more"),
    [
        ("Attention", ["q", "q", "q"], 2 * 4 * 16 * 16 * 8, {}),
        ("Einsum", ["x", "square"], 8 * 16 * 16 * 16, {"equation": "...ij,jk->...ik"}),
        ("Einsum", ["x", "square"], 8 * 16 * 16 * 16, {"equation": "bhij, jk"}),
        ("QLinearConv", ["x", *SCALE, "kernel", *SCALE, *SCALE], 4 * 14 * 14 * 72, {"read": BYTE, "made": BYTE}),
        ("QLinearMatMul", ["x", *SCALE, "square", *SCALE, *SCALE], 8 * 16**3, {"read": BYTE, "made": BYTE}),
        ("MatMulInteger", ["x", "square"], 8 * 16**3, {"read": BYTE, "made": TensorProto.INT32}),
        ("ConvInteger", ["x", "kernel"], 4 * 14 * 14 * 72, {"read": BYTE, "made": TensorProto.INT32}),
    ],
)
def test_products_of_every_kind_are_counted(
    tmp_path: Path, kind: str, inputs: list[str], wanted: int, more: dict[str, Any]
) -> None:
    assert counted(tmp_path, kind, inputs, **more) == pytest.approx(wanted)


def test_a_product_of_three_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot count the multiply-adds of Einsum; give --gflops"):
        counted(tmp_path, "Einsum", ["x", "square", "square"], equation="bhij,jk,kl->bhil")
