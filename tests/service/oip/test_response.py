"""Results as the protocol's outputs."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.engine.messages import HISTORY
from msmlp.service.engine.result import Result
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import Wanted, split_bytes
from msmlp.service.oip.response import Tensor, output_tensors, write_response
from msmlp.service.service import Facts

CLASSES, GFLOPS = ("cat", "dog", "größe"), [0.1, 0.4]
DTYPES = {"INT32": "<i4", "FP32": "<f4"}


def nothing(images: int) -> Result:
    """The result of `images` images, every column zero."""
    zeros = {
        name: np.zeros(images, dtype=kind) for name, kind in (("exit", int), ("reason", np.int8), ("landed", float))
    }
    probabilities = np.zeros((images, len(CLASSES)), dtype=np.float32)
    history = np.zeros((images, len(GFLOPS)), dtype=HISTORY)
    return Result(index=np.arange(images), probabilities=probabilities, history=history, **zeros)


@pytest.fixture
def result() -> Result:
    """Three images: one left at exit 2, one expired, one left at exit 1."""
    result = nothing(3)
    result.exit[:] = [2, 0, 1]
    result.history["class_id"][:] = [[0, 2], [1, 1], [1, 0]]
    result.history["confidence"][:] = [[0.5, 0.75], [0.9, 0.9], [0.5, 0.1]]
    result.probabilities[:] = [[0.125, 0.125, 0.75], [0.05, 0.9, 0.05], [0.25, 0.5, 0.25]]
    return result


def read(body: bytes, header_length: int | None) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """A response as a client reads it: its JSON, and every output's elements."""
    document = json.loads(body[:header_length])
    at, values = header_length or len(body), {}
    for output in document["outputs"]:
        if "data" in output:
            values[output["name"]] = output["data"]
            continue
        size = output["parameters"]["binary_data_size"]
        raw, at = body[at : at + size], at + size
        if output["datatype"] == "BYTES":
            elements = split_bytes(memoryview(raw), int(np.prod(output["shape"])))
            values[output["name"]] = [element.decode() for element in elements]
        else:
            values[output["name"]] = np.frombuffer(raw, DTYPES[output["datatype"]]).tolist()
    assert at == len(body)
    return document, values


def write(result: Result, *wanted: Wanted) -> tuple[bytes, int | None]:
    tensors = output_tensors(result, wanted, Facts({}, CLASSES, GFLOPS))
    return write_response({"id": "7"}, [(t, w.binary) for t, w in zip(tensors, wanted, strict=True)])


@pytest.mark.parametrize("binary", [False, True])
def test_every_output(result: Result, binary: bool) -> None:
    document, values = read(*write(result, *(Wanted(name, binary) for name in OUTPUTS)))
    assert document["id"] == "7"
    assert [(o["name"], o["datatype"], o["shape"]) for o in document["outputs"]] == [
        (name, datatype, [3, 3] if name == "probabilities" else [3]) for name, datatype in OUTPUTS.items()
    ]
    assert values == {
        "label": ["größe", "", "dog"],
        "class_id": [2, -1, 1],
        "confidence": [0.75, 0, 0.5],
        "exit": [2, 0, 1],
        "gflops": pytest.approx([0.4, 0, 0.1]),
        "probabilities": [0.125, 0.125, 0.75, 0, 0, 0, 0.25, 0.5, 0.25],
    }


@given(st.permutations(list(OUTPUTS)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_forms_mix_and_the_order_is_the_requests(names: list[str], binary: list[bool]) -> None:
    result = nothing(2)
    result.exit[:] = [1, 2]
    body, length = write(result, *map(Wanted, names, binary))
    document, values = read(body, length)
    assert [output["name"] for output in document["outputs"]] == names
    assert (length is None) == (not any(binary))
    assert values["exit"] == [1, 2]
    assert values["label"] == ["cat", "cat"]


@pytest.mark.parametrize("binary", [False, True])
def test_best_classes_as_text(result: Result, binary: bool) -> None:
    document, values = read(*write(result, Wanted("probabilities", binary, best=2)))
    (output,) = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [3, 2])
    assert values["probabilities"] == [
        "0.750000:2:größe",
        "0.125000:0:cat",
        "",
        "",
        "0.500000:1:dog",
        "0.250000:0:cat",
    ]
    document, _ = read(*write(result, Wanted("probabilities", binary, best=99)))
    assert document["outputs"][0]["shape"] == [3, 3]


def test_numbers_in_json_are_the_very_numbers() -> None:
    third = np.array([1 / 3], dtype=np.float32)
    body, _ = write_response({}, [(Tensor("confidence", "FP32", [1], third), False)])
    assert np.float32(json.loads(body)["outputs"][0]["data"][0]) == third[0]
