"""An engine's result → the output tensors of an inference response, and the body of it over REST."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.result import Result
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import Wanted
from msmlp.service.oip.tensors import PREFIX
from msmlp.service.service import Facts

NO_CLASS = -1
"""The class_id of an image that expired; its label is empty, all other numbers are 0."""


@dataclass(frozen=True)
class Tensor:
    """An output tensor: texts for BYTES, else an array."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | NDArray[Any]


def output_tensors(result: Result, wanted: Iterable[Wanted], facts: Facts) -> list[Tensor]:
    return [_tensor(result, output, facts.classes, facts.gflops) for output in wanted]


def _tensor(result: Result, wanted: Wanted, classes: tuple[str, ...], gflops: list[float]) -> Tensor:
    images, name = len(result.exit), wanted.name
    if wanted.best:
        best = min(wanted.best, len(classes))
        return Tensor(name, "BYTES", [images, best], _best_classes(result, best, classes))
    data: list[str] | NDArray[Any]
    if name == "label":
        data = list(map((*classes, "").__getitem__, _class_id(result).tolist()))  # NO_CLASS is the last
    elif name == "class_id":
        data = _class_id(result)
    elif name == "confidence":
        data = _at_exit(result, result.history["confidence"], 0)
    elif name == "exit":
        data = result.exit.astype("<i4")
    elif name == "gflops":
        data = np.array([0.0, *gflops], dtype="<f4")[result.exit]
    else:
        data = np.where(result.exit[:, None] > 0, result.probabilities, 0).astype("<f4", copy=False)
    return Tensor(name, OUTPUTS[name], list(data.shape) if isinstance(data, np.ndarray) else [images], data)


def _at_exit(result: Result, stages: NDArray[Any], otherwise: float) -> NDArray[Any]:
    """The column of [n, K] that belongs to each image's exit."""
    at = np.take_along_axis(stages, np.maximum(result.exit - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(result.exit > 0, at, otherwise).astype(stages.dtype.newbyteorder("<"), copy=False)


def _class_id(result: Result) -> NDArray[Any]:
    return _at_exit(result, result.history["class_id"], NO_CLASS)


def _best_classes(result: Result, best: int, classes: tuple[str, ...]) -> list[str]:
    """`probability:index:label`, most likely first, image by image; empty for one that expired."""
    order = np.argsort(-result.probabilities, axis=1, kind="stable")[:, :best]
    probabilities = np.take_along_axis(result.probabilities, order, axis=1)
    return [
        f"{probability:.6f}:{index}:{classes[index]}" if exit else ""
        for exit, indices, row in zip(result.exit.tolist(), order.tolist(), probabilities.tolist(), strict=True)
        for index, probability in zip(indices, row, strict=True)
    ]


def write_response(head: dict[str, Any], outputs: list[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """`head` and tensors, each with whether its data follows the JSON → the body, and the length of the JSON.

    The length is None when no data follows.
    """
    described, parts = [], []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            part = tensor_bytes(tensor)
            entry["parameters"] = {"binary_data_size": part.nbytes}
            parts.append(part)
        else:
            entry["data"] = tensor.data.ravel().tolist() if isinstance(tensor.data, np.ndarray) else tensor.data
        described.append(entry)
    text = json.dumps({**head, "outputs": described}).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def tensor_bytes(tensor: Tensor) -> memoryview:
    if isinstance(tensor.data, np.ndarray):
        return np.ascontiguousarray(tensor.data).data
    return memoryview(join_bytes(text.encode() for text in tensor.data))


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements → BYTES data."""
    return b"".join(part for element in elements for part in (PREFIX.pack(len(element)), element))
