"""inference.proto against the authority: the descriptors that NVIDIA's client brings."""

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import BadImagesError, MalformedBodyError, NoImagesError, TooManyImagesError
from msmlp.service.grpc.messages import METHODS, InferParameter, ModelInferRequest, parse, read_inference
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import Inference, Limits, Wanted
from msmlp.service.oip.response import join_bytes
from msmlp.service.options import RequestOptions

THEIRS = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
OURS = {
    name: message
    for method in METHODS.values()
    for kind in (method.request, method.response)
    for name, message in kind.DESCRIPTOR.file.message_types_by_name.items()
}


def form(field: FieldDescriptor) -> tuple[Any, ...]:
    """What must agree for two programs to understand each other; enums by the values that both know."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, field.is_required, kind and kind.full_name, oneof


def check(ours: Any, theirs: Any) -> None:
    assert ours.full_name == theirs.full_name
    for field in ours.fields:
        assert form(field) == form(theirs.fields_by_name[field.name]), field.full_name
        if field.enum_type:
            known = {value.name: value.number for value in theirs.fields_by_name[field.name].enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= known.items()
    for nested in ours.nested_types:
        check(nested, theirs.nested_types_by_name[nested.name])


def test_all_messages_are_seen() -> None:
    assert len(OURS) > 25
    assert {"InferParameter", "ModelConfig", "ModelStatistics", "ModelInferRequest"} <= set(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_field_is_theirs(name: str) -> None:
    check(OURS[name], THEIRS[name])


def test_a_field_that_differs_is_seen() -> None:
    with pytest.raises(AssertionError, match="dims"):
        check(OURS["ModelInput"], _Renamed(THEIRS["ModelInput"], THEIRS["ModelOutput"]))


class _Renamed:
    """Fields of one message under the name of another."""

    def __init__(self, name_of: Any, fields_of: Any) -> None:
        self.full_name, self.fields_by_name = name_of.full_name, fields_of.fields_by_name


def test_every_method_is_theirs() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, method in METHODS.items():
        theirs = service.methods_by_name[name]
        assert method.request.DESCRIPTOR.full_name == theirs.input_type.full_name
        assert method.response.DESCRIPTOR.full_name == theirs.output_type.full_name
        assert theirs.client_streaming == theirs.server_streaming == (name == "ModelStreamInfer")


def test_their_bytes_are_read() -> None:
    theirs = service_pb2.ModelInferRequest(id="a", raw_input_contents=[b"x"])
    theirs.parameters["n"].uint64_param = 2**63
    ours = parse(ModelInferRequest, theirs.SerializeToString())
    assert (ours.id, ours.raw_input_contents[0], ours.parameters["n"].uint64_param) == ("a", b"x", 2**63)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(MalformedBodyError, match="the message is not a ModelInferRequest"):
        parse(ModelInferRequest, b"\xff\xff")


# --- inference requests ----------------------------------------------------------------------------------------------


LIMITS = Limits(max_images=8, max_pixels=1000)
FILES = [b"one", b"", b"three"]
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [3], "contents": {"bytes_contents": FILES}}
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "contents": {"uint_contents": [1, 2, 255]}}


def request(*tensors: dict[str, Any], **more: Any) -> Any:
    return ModelInferRequest(inputs=list(tensors or [IMAGE]), **more)


def read(message: Any) -> Inference:
    return read_inference(message, LIMITS)


def without(tensor: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**tensor, **changes}.items() if name not in names}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ModelInferRequest(inputs=[{}] * 50_000), "inputs: 50000 were sent; at most 16 are allowed"),
        (request(outputs=[{"name": "label"}] * 17), "outputs: 17 were sent; at most 16 are allowed"),
        (
            request(parameters={str(n): InferParameter(bool_param=True) for n in range(65)}),
            "parameters: 65 were sent; at most 64 are allowed",
        ),
    ],
)
def test_too_many_of_anything_are_counted_and_not_made(message: Any, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBodyError, match=said):
            read(message)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_files_in_contents_and_raw() -> None:
    assert read(request(IMAGE)).images == FILES
    raw = without(IMAGE, "contents")
    assert read(request(raw, raw_input_contents=[join_bytes(FILES)])).images == FILES


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_pixels_in_contents_and_raw(images: int, height: int, width: int, raw: bool) -> None:
    pixels = np.arange(images * height * width * 3).astype(np.uint8).reshape(images, height, width, 3)
    tensor = without(PIXELS, "contents", shape=pixels.shape)
    if raw:
        message = request(tensor, raw_input_contents=[pixels.tobytes()])
    else:
        message = request({**tensor, "contents": {"uint_contents": pixels.ravel().tolist()}})
    got = read(message).images
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, pixels)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    images: Any = ["refused"]
    with contextlib.suppress(MsmlpError):
        images = read(parse(ModelInferRequest, content)).images
    assert len(images) > 0


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ModelInferRequest(), "0 inputs were sent; expected one, pixels or image"),
        (request(IMAGE, PIXELS), "2 inputs were sent"),
        (request({**IMAGE, "name": "picture"}), "'picture' of datatype 'BYTES'; expected pixels UINT8 or"),
        (
            request(without(IMAGE, "contents")),
            "image: expected data in contents, or as the only element of raw_input_contents",
        ),
        (request(IMAGE, raw_input_contents=[b""]), "image: expected data in contents, or as the only element of raw"),
        (
            request(without(IMAGE, "contents"), raw_input_contents=[b"", b""]),
            "or as the only element of raw_input_contents",
        ),
        (request({**IMAGE, "shape": [2]}), "3 elements were sent; the shape has 2"),
        (request({**IMAGE, "shape": [-1]}), "inputs.0.shape.0: expected at least 0"),
        (request({**IMAGE, "shape": [1] * 9}), "inputs.0.shape: List should have at most 8 items"),
        (request({**PIXELS, "shape": [1, 3]}), r"shape \[1, 3\]; expected \[images, height, width, 3\]"),
        (request({**PIXELS, "contents": {"int_contents": [1, 2, 3]}}), r"data has shape \[0\]"),
        (request({**PIXELS, "contents": {"uint_contents": [1, 2, 256]}}), "whole numbers from 0 to 255"),
        (request(without(PIXELS, "contents"), raw_input_contents=[b"12"]), "2 bytes were sent"),
        (request(outputs=[{"name": "logits"}]), "unknown output 'logits'; expected one of label, class_id"),
        (request(outputs=[{"name": "exit"}, {"name": "exit"}]), "asked for once"),
    ],
)
def test_what_is_wrong_is_named(message: Any, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        read(message)


def test_limits() -> None:
    with pytest.raises(NoImagesError):
        read(request({**IMAGE, "shape": [0], "contents": {}}))
    with pytest.raises(TooManyImagesError, match="9 images in one request; at most 8"):
        read(request({**IMAGE, "shape": [9]}))
    with pytest.raises(BadImagesError, match="image is 101x10 = 1010 pixels, the limit is 1000"):
        read(request({**PIXELS, "shape": [1, 10, 101, 3]}))


def test_outputs() -> None:
    assert [wanted.name for wanted in read(request()).outputs] == list(OUTPUTS)
    best = {"name": "probabilities", "parameters": {"classification": InferParameter(int64_param=3)}}
    assert read(request(outputs=[best, {"name": "exit"}])).outputs == [
        Wanted("probabilities", False, 3),
        Wanted("exit", False),
    ]
    best["parameters"] = {"classification": InferParameter(int64_param=0)}
    with pytest.raises(MalformedBodyError, match="expected at least 1"):
        read(request(outputs=[best]))


def test_every_kind_of_parameter() -> None:
    given = {
        "degrade": InferParameter(bool_param=False),
        "min_exit": InferParameter(int64_param=2),
        "top_k": InferParameter(uint64_param=3),
        "max_gflops": InferParameter(double_param=0.5),
        "policy": InferParameter(string_param="fast"),
        "priority": InferParameter(uint64_param=1),
        "triton_x": InferParameter(bool_param=True),
        "timeout": InferParameter(int64_param=1500),
    }
    inference = read(request(id="a", parameters=given))
    assert inference.options == RequestOptions(
        degrade=False, min_exit=2, top_k=3, max_gflops=0.5, policy="fast", deadline_ms=1.5
    )
    assert inference.id == "a"
    assert read(request()).id is None
    with pytest.raises(OptionError, match="max_exit"):
        read(request(parameters={"max_exit": InferParameter()}))
    with pytest.raises(OptionError, match="timeout"):
        read(request(parameters={"timeout": InferParameter(string_param="5")}))
