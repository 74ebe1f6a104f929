"""An inference request, over REST or gRPC → images, options, and the outputs asked for."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import ImageTooLargeError, OptionError
from msmlp.service.errors import (
    BadImagesError,
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from msmlp.service.oip.document import InferenceRequest, InputTensor, OutputTensor, parse_request
from msmlp.service.oip.model import INPUTS, OUTPUTS
from msmlp.service.oip.tensors import (
    check_count,
    files_from_json,
    pixels_from_bytes,
    pixels_from_json,
    pixels_from_numbers,
    split_bytes,
)
from msmlp.service.options import NO_OPTIONS, RequestOptions, parse_options

Data = memoryview | bytes | Sequence[Any]
"""A tensor's data: little-endian bytes, the text of a JSON list, or its elements (numbers, or files as bytes)."""

RESERVED = (
    *("binary_data_output", "content_type", "headers", "priority"),
    *("sequence_end", "sequence_id", "sequence_start", "timeout"),
)
"""Parameters of the protocol, and of Triton's and MLServer's clients, that are not options. Only the first and the last
have an effect; those whose names begin with `triton_` are ignored too."""

MAX_TIMEOUT = 10**12
"""Microseconds; the same limit as that of `deadline_ms`."""


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
    if isinstance(data, memoryview):
        return pixels_from_bytes(data, shape)
    return pixels_from_json(data, shape) if isinstance(data, bytes) else pixels_from_numbers(data, shape)


def _files(tensor: InputTensor, find: Callable[[], Data], limits: Limits) -> list[bytes]:
    if len(tensor.shape) != 1:
        raise MalformedBodyError(f"image: shape {tensor.shape}; expected [images]")
    _check_images(tensor.shape[0], limits)
    data, count = find(), tensor.shape[0]
    if isinstance(data, memoryview):
        return split_bytes(data, count)
    if isinstance(data, bytes):
        return files_from_json(data, count)
    check_count(len(data), count)
    return list(data)


def _check_images(count: int, limits: Limits) -> None:
    if count == 0:
        raise NoImagesError("the request has no image")
    if count > limits.max_images:
        raise TooManyImagesError(f"{count} images in one request; at most {limits.max_images} are allowed")


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


def read_inference(body: bytes, header_length: str | None, limits: Limits) -> Inference:
    """Read a body over REST; `header_length` is the header Inference-Header-Content-Length, None without one.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError
    """
    length = _length(header_length, len(body))
    if length == 0:  # the whole body is one image
        return Inference([body], [Wanted(name, binary=True) for name in OUTPUTS])
    request = parse_request(body[:length])
    return to_inference(request, lambda tensor: _data(tensor, memoryview(body)[length:]), limits)


def _length(given: str | None, size: int) -> int:
    if given is None:
        return size or 1  # an empty body is bad JSON, not a raw image
    if not (given.isascii() and given.isdigit() and len(given) < 20) or int(given) > size:
        raise MalformedBodyError(
            f"Inference-Header-Content-Length is {given[:40]!a}; expected 0 to {size}, the size of the body"
        )
    return int(given)


def _data(tensor: InputTensor, binary: memoryview) -> Data:
    text = tensor.text
    if (tensor.binary_size is None) == (text is None):
        raise MalformedBodyError(f"{tensor.name}: expected data in the JSON, or after it with binary_data_size")
    if len(binary) != (tensor.binary_size or 0):
        raise MalformedBodyError(f"{len(binary)} bytes follow the JSON; binary_data_size is {tensor.binary_size or 0}")
    return binary if text is None else text


_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""zlib's numbers; deflate is RFC 9110's, in zlib's own format."""


_MOST_RATIO = 1032
"""No deflate stream becomes longer by more."""


def decompressed_size(content: bytes, encoding: str, max_bytes: int) -> int:
    """The most bytes that `decompress` makes or reads of a body: gzip says at its end how many, deflate does not."""
    most = _MOST_RATIO * len(content)
    if encoding.strip().lower() == "gzip":
        most = min(most, int.from_bytes(content[-4:], "little"))
    return max(len(content), min(most, max_bytes))


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
        # A gzip body that becomes longer than it says is not a whole one, and found out no later.
        plain = stream.decompress(content, min(max_bytes, decompressed_size(content, encoding, max_bytes)) + 1)
    except zlib.error:
        raise MalformedBodyError(f"the body is not valid {encoding}") from None
    if len(plain) > max_bytes:
        raise BodyTooLargeError(f"the decompressed body has more than {max_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise MalformedBodyError(f"the body is not one complete {encoding} stream")
    return plain
