"""int8 graphs for CPUs: the products of channel mixing in 8 bits, their ranges set by validation images; of imported
graphs every product with a weight.

Activations are uint8 per tensor and weights int8 per output column, both fixed here: with ranges set per batch, an
image's answer would depend on the rest of its batch. All else stays float32: token mixing (its weight is on the left,
where ONNX Runtime has no fast 8-bit product), norms, GELU, residuals, the patch embedding and the head.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from msmlp.model.backends.onnx.base import closed_options
from msmlp.model.errors import ConfigError
from msmlp.model.shape import CascadeShape, parts

BATCH = 64
"""Images per run while the ranges are measured."""

MIXERS, OPERATORS = ("MatMul",), ("Conv", "Gemm", "MatMul")
"""The products in 8 bits, of our own networks and of imported ones."""

Inputs = dict[str, NDArray[Any]]


class Ranges:
    """The inputs of each stage in turn for `pixels` [N, *image shape], from the float32 graphs."""

    def __init__(self, pixels: NDArray[np.uint8], shape: CascadeShape) -> None:
        self._pixels, self._shape, self._stage = pixels, shape, 0
        self._inputs: Inputs = {"pixels": self._read()}

    def _read(self) -> NDArray[np.uint8]:
        """What the stage reads of the images."""
        view = self._shape.reads[self._stage]
        if view is None or len(self._shape.views) == 1:
            return self._pixels
        size = self._shape.views[view]
        return self._pixels[:, parts(self._shape.views)[view]].reshape(-1, size, size, 3)

    def quantized(self, model: onnx.ModelProto, operators: tuple[str, ...] = MIXERS) -> onnx.ModelProto:
        """The next stage's graph, with products of these kinds in int8."""
        weighted = _weighted(model, operators)
        if not weighted:  # the quantizer would take no names for all
            wanted = f"expected a weight of float32 in one of its products ({', '.join(operators)})"
            raise ConfigError(f"stage {self._stage + 1} cannot be quantized; {wanted}")
        reader = _Reader(self._batches({each.name for each in model.graph.input}))
        try:
            return _quantized(model, reader, operators, weighted)
        except Exception as error:  # the quantizer raises whatever it meets
            text = " ".join(str(error).split())
            raise ConfigError(f"stage {self._stage + 1} cannot be quantized by ONNX Runtime: {text}") from error

    def advance(self, graph: bytes) -> None:
        """Run a stage's float32 graph, whose features the next one reads."""
        if self._shape.features[self._stage] is not None:
            session = onnxruntime.InferenceSession(graph, closed_options(), providers=["CPUExecutionProvider"])
            batches = self._batches({each.name for each in session.get_inputs()})
            self._inputs["upstream"] = np.concatenate([session.run(["features"], batch)[0] for batch in batches])
        self._stage += 1
        if self._stage < self._shape.stages:
            self._inputs["pixels"] = self._read()

    def _batches(self, names: set[str]) -> Iterator[Inputs]:
        wanted = {name: each for name, each in self._inputs.items() if name in names}
        for start in range(0, len(self._pixels), BATCH):
            yield {name: each[start : start + BATCH] for name, each in wanted.items()}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, batches: Iterator[Inputs]) -> None:
        self._batches = batches

    def get_next(self) -> Inputs | None:
        return next(self._batches, None)


def _quantized(
    model: onnx.ModelProto, reader: CalibrationDataReader, operators: tuple[str, ...], weighted: list[str]
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            nodes_to_quantize=weighted,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={
                # The product writes float32, which saves two passes over its output.
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            },
        )
        return onnx.load(path)


def _weighted(model: onnx.ModelProto, operators: tuple[str, ...]) -> list[str]:
    """The names of products whose right side is a weight that can be quantized."""
    weights = {each.name: len(each.dims) for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in operators
        and node.input[1] in weights
        and (node.op_type == "Conv" or weights[node.input[1]] == 2)
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's hint that graphs could be preprocessed, which these need not be."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
