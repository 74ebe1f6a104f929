"""An inference request, over REST or gRPC → images, options, and the outputs asked for."""

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msmlp.model.errors import ImageTooLargeError, OptionError, first_mistake
from msmlp.service.errors import (
    BadImagesError,
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from msmlp.service.oip.model import INPUTS, OUTPUTS
from msmlp.service.options import NO_OPTIONS, RequestOptions, parse_options

Data = memoryview | Sequence[Any] | NDArray[Any]
"""A tensor's data: little-endian bytes, or its elements (numbers flat or nested; files as bytes or base64 texts)."""

RESERVED = ("binary_data_output", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")
"""Parameters of the protocol and of Triton's clients that are not options. Only the first and the last have an effect;
those whose names begin with `triton_` are ignored too."""

MAX_TIMEOUT = 10**12
"""Microseconds; the same limit as that of `deadline_ms`."""

MAX_TENSORS = 16
"""Inputs or outputs of a request that are read; more than there are, so that the error can name what is expected."""

MAX_DIMENSIONS = 8

PREFIX = struct.Struct("<I")
"""Before each BYTES element: its length."""

Size = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class InputParameters(_Part):
    """`binary_data_size`: the number of bytes after the JSON that are this tensor's data; REST only."""

    binary_data_size: Size | None = None


class InputTensor(_Part):
    """An input; `data` only when it is in the JSON."""

    name: str
    datatype: str
    shape: list[Size] = Field(max_length=MAX_DIMENSIONS, fail_fast=True)
    parameters: InputParameters | None = None
    data: list[Any] | None = None

    @property
    def binary_size(self) -> int | None:
        """The length of its data after the JSON; None when its data is in the JSON."""
        return self.parameters.binary_data_size if self.parameters else None


class OutputParameters(_Part):
    """`binary_data`: send it after the JSON (REST only); `classification`: send this many likeliest classes instead."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None


class OutputTensor(_Part):
    name: str
    parameters: OutputParameters | None = None


class InferenceRequest(_Part):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InputTensor] = Field(max_length=MAX_TENSORS, fail_fast=True)
    outputs: list[OutputTensor] | None = Field(default=None, max_length=MAX_TENSORS, fail_fast=True)


def parse_request(content: bytes | dict[str, Any]) -> InferenceRequest:
    """The JSON part of a request, or the same as plain data.

    Raises:
        MalformedBodyError: not JSON, or not a request of the protocol.
    """
    try:
        if isinstance(content, bytes):
            return InferenceRequest.model_validate_json(content)
        return InferenceRequest.model_validate(content)
    except ValidationError as error:
        place, wrong = first_mistake(error)
        raise MalformedBodyError(f"{place or 'the JSON part of the request'}: {wrong}") from None


@dataclass(frozen=True)
class Wanted:
    """An output to send, after the JSON if `binary`; with `best`, that many classes as text instead of numbers."""

    name: str
    binary: bool
    best: int | None = None


@dataclass(frozen=True)
class Inference:
    """A request that was read: encoded images or pixels [n, H, W, 3], options, outputs in the order of the response."""

    images: list[bytes] | NDArray[np.uint8]
    outputs: list[Wanted]
    options: RequestOptions = NO_OPTIONS
    id: str | None = None


@dataclass(frozen=True)
class Limits:
    """The most images of a request, and the most pixels (width x height) of an image."""

    max_images: int
    max_pixels: int


def to_inference(request: InferenceRequest, data_of: Callable[[InputTensor], Data], limits: Limits) -> Inference:
    """Check a request and read its images; `data_of` finds the data of its one tensor.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError, and what `data_of` raises
    """
    tensor = _only_input(request)
    read = _pixels if tensor.name == "pixels" else _files
    images = read(tensor, lambda: data_of(tensor), limits)
    return Inference(images, _outputs(request), parse_options(_options(request.parameters or {})), request.id)


def _only_input(request: InferenceRequest) -> InputTensor:
    if len(request.inputs) != 1:
        raise MalformedBodyError(f"{len(request.inputs)} inputs were sent; expected one, pixels or image")
    tensor = request.inputs[0]
    if INPUTS.get(tensor.name) != tensor.datatype:
        known = " or ".join(f"{name} {datatype}" for name, datatype in INPUTS.items())
        raise MalformedBodyError(
            f"unknown input {tensor.name[:40]!a} of datatype {tensor.datatype[:40]!a}; expected {known}"
        )
    return tensor


def _pixels(tensor: InputTensor, find: Callable[[], Data], limits: Limits) -> NDArray[np.uint8]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise MalformedBodyError(f"pixels: shape {shape}; expected [images, height, width, 3]")
    _check_images(shape[0], limits)
    height, width = shape[1:3]
    if height * width > limits.max_pixels:
        error = f"image is {width}x{height} = {height * width} pixels, the limit is {limits.max_pixels}"
        raise BadImagesError([(index, ImageTooLargeError(error)) for index in range(shape[0])])
    data = find()
    return pixels_from_bytes(data, shape) if isinstance(data, memoryview) else pixels_from_numbers(data, shape)


def _files(tensor: InputTensor, find: Callable[[], Data], limits: Limits) -> list[bytes]:
    if len(tensor.shape) != 1:
        raise MalformedBodyError(f"image: shape {tensor.shape}; expected [images]")
    _check_images(tensor.shape[0], limits)
    data, count = find(), tensor.shape[0]
    return split_bytes(data, count) if isinstance(data, memoryview) else files_from_elements(data, count)


def _check_images(count: int, limits: Limits) -> None:
    if count == 0:
        raise NoImagesError("the request has no image")
    if count > limits.max_images:
        raise TooManyImagesError(f"{count} images in one request; at most {limits.max_images} are allowed")


def pixels_from_bytes(raw: memoryview, shape: list[int]) -> NDArray[np.uint8]:
    """UINT8 data → an array over the same memory."""
    if len(raw) != math.prod(shape):
        raise MalformedBodyError(f"pixels: {len(raw)} bytes were sent; shape {shape} has {math.prod(shape)}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def pixels_from_numbers(data: Sequence[Any] | NDArray[Any], shape: list[int]) -> NDArray[np.uint8]:
    """Numbers 0 to 255, flat or nested as the shape says → an array."""
    try:
        numbers = np.array(data)
    except (ValueError, OverflowError):  # lists of unequal length, or deeper than arrays go
        raise MalformedBodyError("pixels: data is nested unevenly") from None
    if numbers.size != math.prod(shape) or (numbers.ndim > 1 and list(numbers.shape) != shape):
        raise MalformedBodyError(
            f"pixels: data has shape {list(numbers.shape)}; expected {shape} or [{math.prod(shape)}]"
        )
    if numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255):
        raise MalformedBodyError("pixels: expected whole numbers from 0 to 255")
    return numbers.astype(np.uint8).reshape(shape)


def split_bytes(raw: memoryview, count: int) -> list[bytes]:
    """BYTES data → its elements.

    Raises:
        MalformedBodyError: a length that goes beyond the end, or not `count` elements.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if len(elements) == count:  # without counting how many more there are
            raise MalformedBodyError(f"image: more elements were sent than the {count} of the shape")
        start = at + PREFIX.size
        if start > len(raw):
            raise MalformedBodyError(f"image: the 4-byte length before element {len(elements)} is cut short")
        (length,) = PREFIX.unpack_from(raw, at)
        at = start + length
        if at > len(raw):
            left = len(raw) - start
            raise MalformedBodyError(f"image: element {len(elements)} should have {length} bytes; {left} are left")
        elements.append(bytes(raw[start:at]))
    _check_count(len(elements), count)
    return elements


def files_from_elements(data: Sequence[Any] | NDArray[Any], count: int) -> list[bytes]:
    """Files as bytes, or as base64 strings from JSON."""
    _check_count(len(data), count)
    try:
        return [element if isinstance(element, bytes) else _decoded(element) for element in data]
    except (binascii.Error, TypeError, ValueError):
        raise MalformedBodyError("image: expected base64 strings in JSON, one per file") from None


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError
    return base64.b64decode(text, validate=True)


def _check_count(given: int, count: int) -> None:
    if given != count:
        raise MalformedBodyError(f"image: {given} elements were sent; the shape has {count}")


def _outputs(request: InferenceRequest) -> list[Wanted]:
    binary = (request.parameters or {}).get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise OptionError("binary_data_output", "expected true or false")
    asked = request.outputs or [OutputTensor(name=name) for name in OUTPUTS]
    wanted = [_wanted(output, binary) for output in asked]
    if len({output.name for output in wanted}) < len(wanted):
        raise MalformedBodyError("outputs: each may be asked for once")
    return wanted


def _wanted(output: OutputTensor, binary: bool) -> Wanted:
    if output.name not in OUTPUTS:
        raise MalformedBodyError(f"unknown output {output.name[:40]!a}; expected one of {', '.join(OUTPUTS)}")
    given = output.parameters
    if given is None:
        return Wanted(output.name, binary)
    if given.classification is not None and output.name != "probabilities":
        raise MalformedBodyError(f"{output.name}: classification is for probabilities only")
    return Wanted(output.name, binary if given.binary_data is None else given.binary_data, given.classification)


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `POST /classify` among the parameters; `timeout`, in microseconds, is a deadline."""
    options = {
        name: value for name, value in parameters.items() if name not in RESERVED and not name.startswith("triton_")
    }
    timeout = parameters.get("timeout") or 0
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout <= MAX_TIMEOUT:
        raise OptionError("timeout", f"expected a whole number of microseconds from 0 (none) to {MAX_TIMEOUT}")
    if timeout and "deadline_ms" not in options:
        options["deadline_ms"] = timeout / 1e3
    return options


def read_inference(body: bytes | bytearray, header_length: str | None, limits: Limits) -> Inference:
    """Read a body over REST; `header_length` is the header Inference-Header-Content-Length, None without one.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError
    """
    length = _length(header_length, len(body))
    if length == 0:  # the whole body is one image
        return Inference([bytes(body)], [Wanted(name, binary=True) for name in OUTPUTS])
    content = memoryview(body)
    request = parse_request(bytes(content[:length]))
    return to_inference(request, lambda tensor: _data(tensor, content[length:]), limits)


def _length(given: str | None, size: int) -> int:
    if given is None:
        return size or 1  # an empty body is bad JSON, not a raw image
    if not (given.isascii() and given.isdigit() and len(given) < 20) or int(given) > size:
        raise MalformedBodyError(
            f"Inference-Header-Content-Length is {given[:40]!a}; expected 0 to {size}, the size of the body"
        )
    return int(given)


def _data(tensor: InputTensor, binary: memoryview) -> Data:
    if (tensor.binary_size is None) == (tensor.data is None):
        raise MalformedBodyError(f"{tensor.name}: expected data in the JSON, or after it with binary_data_size")
    if len(binary) != (tensor.binary_size or 0):
        raise MalformedBodyError(f"{len(binary)} bytes follow the JSON; binary_data_size is {tensor.binary_size or 0}")
    return binary if tensor.data is None else tensor.data


_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""zlib's numbers; deflate is RFC 9110's, in zlib's own format."""


def decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body by its Content-Encoding (empty: none), never holding more than `max_bytes` of it decompressed.

    Raises:
        UnsupportedMediaTypeError, BodyTooLargeError, MalformedBodyError
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaTypeError(
            f"content encoding {encoding[:40]!a} is not supported; expected {' or '.join(_WINDOW_BITS)}"
        )
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = stream.decompress(content, max_bytes + 1)
    except zlib.error:
        raise MalformedBodyError(f"the body is not valid {encoding}") from None
    if len(plain) > max_bytes:
        raise BodyTooLargeError(f"the decompressed body has more than {max_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise MalformedBodyError(f"the body is not one complete {encoding} stream")
    return plain
