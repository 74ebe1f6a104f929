"""The JSON of inference requests: what is built of it, and what a mistake is called."""

import json
import tracemalloc
from typing import Any

import pytest

from msmlp.service.errors import MalformedBodyError
from msmlp.service.oip.document import MAX_REST_BYTES, parse_request

TENSOR = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
BOMBS = ["[]", "{}", "0", '"a"', "[[]]", '{"a":0}', "null"]


def many(item: str, length: int = 4 * MAX_REST_BYTES) -> str:
    return ",".join([item] * (length // len(item)))


def with_bomb(place: str, items: str) -> str:
    name, rest = '"name":"pixels","datatype":"UINT8"', '"shape":[1,1,1,3]'
    return {
        "beside": f'{{"inputs":[{{{name},{rest}}}],"x":[{items}]}}',
        "in the tensor": f'{{"inputs":[{{{name},{rest},"x":[{items}]}}]}}',
        "more inputs": f'{{"inputs":[{{{name},{rest}}},{items}]}}',
        "inputs": f'{{"inputs":[{items}]}}',
        "shape": f'{{"inputs":[{{{name},"shape":[{items}]}}]}}',
        "outputs": f'{{"inputs":[{{{name},{rest}}}],"outputs":[{items}]}}',
        "parameters": f'{{"inputs":[{{{name},{rest}}}],"parameters":{{"thresholds":[{items}]}}}}',
        "first of two data": f'{{"inputs":[{{{name},{rest},"data":[{items}],"data":[1]}}]}}',
    }[place]


PLACES = ["beside", "in the tensor", "more inputs", "inputs", "shape", "outputs", "parameters", "first of two data"]


@pytest.mark.parametrize("item", BOMBS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_built_of_what_is_no_request(place: str, item: str) -> None:
    text = with_bomb(place, many(item)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBodyError):
            parse_request(text)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_data_stays_text_and_may_be_large() -> None:
    items = many("0")
    text = json.dumps({"inputs": [{**TENSOR, "data": "HERE"}], "unknown": {"ignored": [1]}}).replace(
        '"HERE"', f"[{items}]"
    )
    tracemalloc.start()
    try:
        (tensor,) = parse_request(text.encode()).inputs
        assert tracemalloc.get_traced_memory()[1] < 2 * len(text)
    finally:
        tracemalloc.stop()
    assert tensor.text == f"[{items}]".encode()


@pytest.mark.parametrize("data", [{}, {"data": None}])
def test_no_data_in_the_json(data: dict[str, Any]) -> None:
    tensor = {name: value for name, value in TENSOR.items() if name != "data"}
    assert parse_request(json.dumps({"inputs": [{**tensor, **data}]}).encode()).inputs[0].text is None


def test_a_huge_name_is_not_repeated() -> None:
    document = {"inputs": [TENSOR], "parameters": {"a" * 100_000: 1}}
    text = json.dumps(document).encode().replace(b": 1}", b": " + b"1" * 5000 + b"}")
    with pytest.raises(MalformedBodyError) as caught:
        parse_request(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "the JSON part of the request: expected an object"),
        ({}, "inputs: Field required"),
        ({"inputs": [{}]}, "inputs.0.name: Field required"),
        ({"inputs": {}}, "inputs: expected a valid list"),
        ({"inputs": [7]}, "inputs.0: expected an object"),
        ({"inputs": [TENSOR] * 17}, "inputs: List should have at most 16 items"),
        ({"inputs": [{**TENSOR, "shape": [1] * 9}]}, "inputs.0.shape: List should have at most 8 items"),
        ({"inputs": [{**TENSOR, "shape": [True]}]}, "inputs.0.shape.0: expected a valid integer"),
        ({"inputs": [{**TENSOR, "shape": [-1]}]}, "inputs.0.shape.0: expected at least 0"),
        ({"inputs": [{**TENSOR, "shape": [2**31]}]}, "inputs.0.shape.0: expected at most 2147483647"),
        ({"inputs": [TENSOR], "id": 7}, "id: expected a valid string"),
        ({"inputs": [TENSOR], "parameters": []}, "parameters: expected an object"),
        (
            {"inputs": [TENSOR], "outputs": [{"name": "exit", "parameters": {"binary_data": 1}}]},
            "outputs.0.parameters.binary_data: expected a valid boolean",
        ),
    ],
)
def test_mistakes_have_their_place(document: Any, said: str) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        parse_request(json.dumps(document).encode())
    assert str(caught.value) == said
    if isinstance(document, dict):  # as from a message
        plain = json.loads(
            json.dumps(document), object_hook=lambda found: {k: v for k, v in found.items() if k != "data"}
        )
        with pytest.raises(MalformedBodyError) as caught:
            parse_request(plain)
        assert str(caught.value) == said


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"x":' * 10**6, b'{"inputs": [' * 10**5, b'{"id": "\xff"}', b'{"inputs": []} x']
)
def test_no_json(text: bytes) -> None:
    with pytest.raises(MalformedBodyError, match="the JSON part of the request is not JSON"):
        parse_request(text)
