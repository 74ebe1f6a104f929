"""Messages that would be far larger parsed than sent."""

import contextlib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError
from msmlp.service.grpc.messages import InferParameter, ModelInferRequest, parse
from msmlp.service.grpc.wire import MAX_FIELDS, MAX_PARTS, check_message, check_parts
from msmlp.service.oip.document import MAX_REST_BYTES

MANY = 200_000
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3]}


def request(**tensor: Any) -> Any:
    return ModelInferRequest(model_name="msmlp", inputs=[{**PIXELS, **tensor}])


@pytest.mark.parametrize(
    "message",
    [
        request(contents={"uint_contents": [255] * 1000}),
        request(contents={"bytes_contents": [b"x" * MAX_REST_BYTES, b"", b"y" * MAX_REST_BYTES]}),
        ModelInferRequest(
            inputs=[PIXELS],
            raw_input_contents=[b"x" * 2 * MAX_REST_BYTES],
            parameters={"priority": InferParameter(uint64_param=2**63), "x": InferParameter(double_param=0.5)},
            outputs=[{"name": "exit"}],
        ),
    ],
)
def test_honest_messages_pass(message: Any) -> None:
    check_message(message.SerializeToString(), 10_000)
    check_parts(message.SerializeToString())


def test_parts_are_those_of_the_message_itself() -> None:
    check_parts(request(contents={"bytes_contents": [b""] * 10 * MAX_PARTS}).SerializeToString())
    check_parts(ModelInferRequest(outputs=[{}] * MAX_PARTS).SerializeToString())
    with pytest.raises(MalformedBodyError, match=f"more than {MAX_PARTS} tensors and parameters"):
        check_parts(ModelInferRequest(outputs=[{}] * (MAX_PARTS + 1)).SerializeToString())


def test_numbers_have_a_limit() -> None:
    content = request(contents={"uint_contents": [1] * 1000}).SerializeToString()
    check_message(content, 1003)  # with tag and length
    with pytest.raises(BodyTooLargeError, match="more than 1002 bytes of numbers: use raw_input_contents"):
        check_message(content, 1002)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ModelInferRequest(inputs=[{}] * MANY), f"more than {MAX_FIELDS} fields"),
        (ModelInferRequest(outputs=[{}] * MANY), f"more than {MAX_FIELDS} fields"),
        (ModelInferRequest(raw_input_contents=[b""] * MANY), f"more than {MAX_FIELDS} fields"),
        (request(contents={"bytes_contents": [b""] * MANY}), f"more than {MAX_FIELDS} fields"),
        (request(shape=[1] * 2 * MANY), f"more than {MAX_REST_BYTES} bytes besides its data"),
        (ModelInferRequest(id="x" * 2 * MANY), f"more than {MAX_REST_BYTES} bytes besides its data"),
    ],
)
def test_a_message_of_many_parts_is_refused_unparsed(message: Any, said: str) -> None:
    content = message.SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBodyError, match=said):
            check_message(content, 2**24)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_fields_are_counted_over_all_of_a_message() -> None:
    """No part of it has many, and none costs more than two bytes."""
    tensor = request(contents={"bytes_contents": [b""] * 1000}).inputs[0]
    check_message(ModelInferRequest(inputs=[tensor] * 60).SerializeToString(), 2**24)
    content = ModelInferRequest(inputs=[tensor] * 70).SerializeToString()
    with pytest.raises(MalformedBodyError, match=f"more than {MAX_FIELDS} fields"):
        check_message(content, 2**24)
    # Told from the beginning alone: what follows is no message.
    with pytest.raises(MalformedBodyError, match=f"more than {MAX_FIELDS} fields"):
        check_message(content + b"\x0b", 2**24)


def test_numbers_are_counted_over_all_tensors() -> None:
    tensor = request(contents={"uint_contents": [1] * 1000}).inputs[0]
    content = ModelInferRequest(inputs=[tensor] * 3).SerializeToString()
    check_message(content, 3009)
    with pytest.raises(BodyTooLargeError, match="more than 3008 bytes of numbers"):
        check_message(content, 3008)


def test_what_is_too_much_is_told_before_the_rest_is_read() -> None:
    with pytest.raises(MalformedBodyError, match=f"more than {MAX_REST_BYTES} bytes besides its data"):
        check_message(ModelInferRequest(id="x" * 2 * MANY).SerializeToString() + b"\x0b", 100)


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0b", b"\x80" * 20, b"\x2a\x02\x80\x80"])
def test_what_is_no_message(content: bytes) -> None:
    with pytest.raises(MalformedBodyError, match="the message is not a ModelInferRequest"):
        check_message(content, 100)


@given(st.binary(max_size=60))
def test_what_can_be_parsed_passes(content: bytes) -> None:
    """Bytes cut short pass too: the parser will refuse them."""
    with contextlib.suppress(MalformedBodyError):
        parse(ModelInferRequest, content)
        if not any(byte & 7 in (3, 4) for byte in content):  # groups, which are nobody's
            check_message(content, 100)
            return
    with contextlib.suppress(MalformedBodyError, BodyTooLargeError):
        check_message(content, 100)
