"""Bodies of inference requests, taken apart without a server."""

import base64
import contextlib
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import (
    BadImagesError,
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import Inference, Limits, Wanted, decompress, parse_request, read_inference, to_inference
from msmlp.service.oip.response import join_bytes
from msmlp.service.options import NO_OPTIONS, RequestOptions

LIMITS = Limits(max_images=8, max_pixels=1000)
FILES = [b"one", b"", b"three"]


def image_tensor(*files: bytes, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data, **changes}


def pixel_tensor(shape: list[int], **changes: Any) -> dict[str, Any]:
    return {"name": "pixels", "datatype": "UINT8", "shape": shape, **changes}


def read(document: Any, binary: bytes = b"", limits: Limits = LIMITS) -> Inference:
    text = json.dumps(document).encode()
    return read_inference(text + binary, str(len(text)) if binary else None, limits)


def request(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(tensors or [image_tensor(b"x")]), **more}


def test_files_in_json_and_after_it() -> None:
    assert read(request(image_tensor(*FILES))).images == FILES
    raw = join_bytes(FILES)
    after = image_tensor(*FILES, data=None, parameters={"binary_data_size": len(raw)})
    assert read(request(after), raw).images == FILES


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_pixels_in_json_and_after_it(images: int, height: int, width: int, binary: bool) -> None:
    pixels = np.arange(images * height * width * 3).astype(np.uint8).reshape(images, height, width, 3)
    if binary:
        tensor = pixel_tensor(list(pixels.shape), parameters={"binary_data_size": pixels.nbytes})
        got = read(request(tensor), pixels.tobytes()).images
    else:
        got = read(request(pixel_tensor(list(pixels.shape), data=pixels.tolist()))).images
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, pixels)


def test_the_whole_body_is_one_image() -> None:
    inference = read_inference(b"\xff\xd8...", "0", LIMITS)
    assert inference.images == [b"\xff\xd8..."]
    assert inference.outputs == [Wanted(name, binary=True) for name in OUTPUTS]


@given(st.binary(max_size=60), st.one_of(st.none(), st.text(max_size=6), st.integers(-3, 80).map(str)))
def test_any_body_under_any_header_is_read_or_refused(body: bytes, header: str | None) -> None:
    images: Any = ["refused"]
    with contextlib.suppress(MsmlpError):
        images = read_inference(body, header, LIMITS).images
    assert len(images) > 0


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"inputs": [{}] * 50_000}, "inputs.0.name: Field required"),
        ({"inputs": [image_tensor(b"x")] * 17}, "inputs: List should have at most 16 items"),
        (request(outputs=[{}] * 50_000), "outputs.0.name: Field required"),
        (request(image_tensor(b"x", shape=[{}] * 50_000)), "inputs.0.shape.0: expected a valid integer"),
    ],
)
def test_the_first_fault_of_thousands_is_enough(document: Any, said: str) -> None:
    """Each fault collected would be a thousand bytes of memory."""
    text = json.dumps(document).encode()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBodyError, match=said):
            read_inference(text, None, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text) + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "tensor",
    [
        pixel_tensor([9, 1, 1, 3], parameters={"binary_data_size": 1}),
        pixel_tensor([1, 1, 1, 4], parameters={"binary_data_size": 1}),
        image_tensor(shape=[9], data=None, parameters={"binary_data_size": 1}),
    ],
)
def test_data_is_not_looked_for_where_shape_or_limits_refuse_it(tensor: dict[str, Any]) -> None:
    def find(_: object) -> Any:
        raise AssertionError("it was looked for")

    with pytest.raises((MalformedBodyError, TooManyImagesError)):
        to_inference(parse_request(json.dumps(request(tensor)).encode()), find, LIMITS)


@given(st.data())
def test_a_body_cut_short_is_refused(data: st.DataObject) -> None:
    raw = join_bytes(FILES)
    text = json.dumps(request(image_tensor(*FILES, data=None, parameters={"binary_data_size": len(raw)}))).encode()
    body = text + raw
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(MalformedBodyError):
        read_inference(body[:cut], str(len(text)), LIMITS)


@pytest.mark.parametrize("header", ["-1", "3", "1e1", "", " ", "٣", "9" * 30, "0x1", "+2"])
def test_a_header_that_is_no_length_within_the_body(header: str) -> None:
    with pytest.raises(MalformedBodyError, match=r"Inference-Header-Content-Length is .*; expected 0 to 2"):
        read_inference(b"{}", header, LIMITS)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected an object"),
        ({}, "inputs: Field required"),
        ({"inputs": {}}, "inputs: expected a valid"),
        ({"inputs": []}, "0 inputs were sent; expected one, pixels or image"),
        (request(image_tensor(b"x"), image_tensor(b"x")), "2 inputs were sent"),
        (request(id=7), "id: expected a valid string"),
        (request(parameters=[]), "parameters: expected"),
        (
            request(image_tensor(b"x", name="picture")),
            "'picture' of datatype 'BYTES'; expected pixels UINT8 or",
        ),
        (request(image_tensor(b"x", datatype="UINT8")), "unknown input 'image' of datatype 'UINT8'"),
        (request(pixel_tensor([1, 1, 1, 3], datatype="FP32", data=[1, 2, 3])), "'pixels' of datatype 'FP32'"),
        (request(image_tensor(b"x", shape=[-1])), "inputs.0.shape.0: expected at least 0"),
        (request(image_tensor(b"x", shape=[2**70])), "inputs.0.shape.0: expected at most"),
        (request(image_tensor(b"x", shape=[1.0])), "inputs.0.shape.0: expected a valid integer"),
        (request(image_tensor(b"x", shape=[1, 1])), r"image: shape \[1, 1\]; expected \[images\]"),
        (request(image_tensor(b"x", shape=[2])), "1 elements were sent; the shape has 2"),
        (request(pixel_tensor([1, 3, 1, 1], data=[1, 2, 3])), r"expected \[images, height, width, 3\]"),
        (request(pixel_tensor([3], data=[1, 2, 3])), r"expected \[images, height, width, 3\]"),
        (request(pixel_tensor([1, 0, 1, 3], data=[])), r"expected \[images, height, width, 3\]"),
        (request(image_tensor(b"x", data=None)), "image: expected data in the JSON, or after it"),
        (request(image_tensor(b"x", parameters={"binary_data_size": 4})), "image: expected data in the JSON, or after"),
        (request(image_tensor(b"x", parameters={"binary_data_size": -4})), "expected at least 0"),
        (request(image_tensor(b"x", parameters={"binary_data_size": "4"})), "valid integer"),
        (request(image_tensor(b"x", data=None, parameters={"binary_data_size": 4})), "0 bytes follow the JSON"),
        (request(outputs=[{"name": "logits"}]), "unknown output 'logits'; expected one of label, class_id"),
        (request(outputs=[{"name": "exit"}, {"name": "exit"}]), "asked for once"),
        (request(outputs=[{"name": "exit", "parameters": {"classification": 3}}]), "is for probabilities only"),
        (request(outputs=[{"name": "probabilities", "parameters": {"classification": 0}}]), "expected at least 1"),
        (request(outputs=[{"name": "exit", "parameters": {"binary_data": 1}}]), "valid boolean"),
    ],
)
def test_what_is_wrong_is_named(document: Any, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        read(document)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": [' * 50_000])
def test_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedBodyError, match="JSON"):
        read_inference(text, None, LIMITS)


@pytest.mark.parametrize("difference", [-1, 1])
def test_more_or_fewer_bytes_than_binary_data_size(difference: int) -> None:
    tensor = image_tensor(b"x", data=None, parameters={"binary_data_size": 5})
    with pytest.raises(MalformedBodyError, match=f"{5 + difference} bytes follow the JSON; binary_data_size is 5"):
        read(request(tensor), bytes(5 + difference))


def test_limits() -> None:
    with pytest.raises(NoImagesError):
        read(request(image_tensor()))
    with pytest.raises(TooManyImagesError, match="9 images in one request; at most 8"):
        read(request(image_tensor(*[b"x"] * 9)))
    with pytest.raises(TooManyImagesError):  # said before the data is looked at
        read(request(pixel_tensor([2**31 - 1, 2**31 - 1, 2**31 - 1, 3], data=[])))
    with pytest.raises(BadImagesError, match="image is 101x10 = 1010 pixels, the limit is 1000"):
        read(request(pixel_tensor([1, 10, 101, 3], data=[])))


def test_outputs() -> None:
    def asked(*outputs: dict[str, Any], **parameters: Any) -> list[Wanted]:
        return read(request(outputs=list(outputs), parameters=parameters)).outputs

    assert asked() == [Wanted(name, binary=False) for name in OUTPUTS]
    assert asked(binary_data_output=True) == [Wanted(name, binary=True) for name in OUTPUTS]
    assert asked({"name": "exit"}, {"name": "label"}) == [Wanted("exit", False), Wanted("label", False)]
    mixed = asked({"name": "exit"}, {"name": "label", "parameters": {"binary_data": False}}, binary_data_output=True)
    assert mixed == [Wanted("exit", True), Wanted("label", False)]
    best = {"name": "probabilities", "parameters": {"classification": 3, "binary_data": True}}
    assert asked(best) == [Wanted("probabilities", True, 3)]
    with pytest.raises(OptionError, match="binary_data_output"):
        asked(binary_data_output="yes")


def test_parameters_are_options_but_for_the_protocols_own() -> None:
    given = {"thresholds": "0.9,0.8", "min_exit": 2, "stream": False}
    own = {
        "priority": 1,
        "content_type": "np",
        "sequence_id": 5,
        "sequence_start": True,
        "triton_x": 1,
        "binary_data_output": True,
    }
    inference = read(request(parameters={**given, **own}, id="a"))
    assert inference.options == RequestOptions(thresholds=(0.9, 0.8), min_exit=2, stream=False)
    assert inference.id == "a"
    assert read(request(parameters=None)).options == NO_OPTIONS


def test_a_timeout_is_a_deadline() -> None:
    assert read(request(parameters={"timeout": 1500})).options == RequestOptions(deadline_ms=1.5)
    assert read(request(parameters={"timeout": 0})).options == NO_OPTIONS
    assert read(request(parameters={"timeout": 1500, "deadline_ms": 7})).options == RequestOptions(deadline_ms=7)
    for bad in (-1, "5", 1.5, True, 10**400):
        with pytest.raises(OptionError, match="timeout"):
            read(request(parameters={"timeout": bad}))


# --- compressed bodies -----------------------------------------------------------------------------------------------


PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", " GZIP", "", "identity"]))
def test_what_is_packed_comes_back(content: bytes, encoding: str) -> None:
    pack = PACK.get(encoding.strip().lower(), bytes)
    assert decompress(pack(content), encoding, 300) == content


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_not_held(encoding: str) -> None:
    packed = PACK[encoding](bytes(10**6))
    assert len(packed) < 5000
    with pytest.raises(BodyTooLargeError, match="decompressed body has more than 999999 bytes"):
        decompress(packed, encoding, 10**6 - 1)
    assert decompress(packed, encoding, 10**6) == bytes(10**6)


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b, lambda b: b""])
def test_damaged_streams(encoding: str, damage: object) -> None:
    with pytest.raises(MalformedBodyError):
        decompress(damage(PACK[encoding](b"content")), encoding, 100)  # type: ignore[operator]


def test_an_unknown_encoding() -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="'br' is not supported; expected gzip or deflate"):
        decompress(b"x", "br", 100)
