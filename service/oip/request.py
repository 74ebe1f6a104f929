"""The body of an inference request → images, options, and the outputs asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ImageTooLargeError, OptionError
from service.errors import BadImagesError, MalformedBodyError, NoImagesError, TooManyImagesError
from service.oip.model import INPUTS, OUTPUTS
from service.oip.schema import InferenceRequest, InputTensor, OutputTensor, parse_json
from service.oip.tensors import bytes_from_json, pixels_from_bytes, pixels_from_json, split_bytes

RESERVED = ("binary_data_output", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")
"""Parameters of the protocol and of Triton's clients that are no options; all but the first and the last mean nothing
here. So do names that begin with `triton_`."""

MAX_TIMEOUT = 10**12
"""Microseconds; as much as `deadline_ms` allows."""


@dataclass(frozen=True)
class Wanted:
    """An output to send: after the JSON when `binary`; with `best`, that many classes as text instead of numbers."""

    name: str
    binary: bool
    best: int | None = None


@dataclass(frozen=True)
class Inference:
    """A request taken apart: encoded images or pixels [n, H, W, 3], raw options, outputs in the order of the answer."""

    images: list[bytes] | NDArray[np.uint8]
    outputs: list[Wanted]
    options: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True)
class Limits:
    """The most images of one request, and the most pixels (width x height) of one image."""

    max_images: int
    max_pixels: int


def read_inference(body: bytes | bytearray, header_length: str | None, limits: Limits) -> Inference:
    """Take a body apart; `header_length` is the text of Inference-Header-Content-Length, None without one.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError
    """
    length = _length(header_length, len(body))
    if length == 0:  # the whole body is one image
        return Inference([bytes(body)], [Wanted(name, binary=True) for name in OUTPUTS])
    content = memoryview(body)
    request = parse_json(bytes(content[:length]))
    images = _images(request, content[length:], limits)
    parameters = request.parameters or {}
    return Inference(images, _outputs(request), _options(parameters), request.id)


def _length(given: str | None, size: int) -> int:
    if given is None:
        return size or 1  # an empty body is bad JSON, not a raw image
    if not (given.isascii() and given.isdigit() and len(given) < 20) or int(given) > size:
        raise MalformedBodyError(
            f"Inference-Header-Content-Length is {given[:40]!a}; allowed: 0 to {size}, the size of the body"
        )
    return int(given)


def _images(request: InferenceRequest, binary: memoryview, limits: Limits) -> list[bytes] | NDArray[np.uint8]:
    if len(request.inputs) != 1:
        raise MalformedBodyError(f"{len(request.inputs)} inputs were sent; send one, pixels or image")
    tensor = request.inputs[0]
    if INPUTS.get(tensor.name) != tensor.datatype:
        allowed = " or ".join(f"{name} {datatype}" for name, datatype in INPUTS.items())
        raise MalformedBodyError(
            f"input {tensor.name[:40]!a} of datatype {tensor.datatype[:40]!a} is not known; send {allowed}"
        )
    if (tensor.binary_size is None) == (tensor.data is None):
        raise MalformedBodyError(f"{tensor.name}: send its data in the JSON, or after it with binary_data_size")
    if len(binary) != (tensor.binary_size or 0):
        raise MalformedBodyError(
            f"{len(binary)} bytes follow the JSON, binary_data_size says {tensor.binary_size or 0}"
        )
    return _pixels(tensor, binary, limits) if tensor.name == "pixels" else _files(tensor, binary, limits)


def _pixels(tensor: InputTensor, binary: memoryview, limits: Limits) -> NDArray[np.uint8]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise MalformedBodyError(f"pixels: the shape {shape} is not [images, height, width, 3]")
    _check_images(shape[0], limits)
    height, width = shape[1:3]
    if height * width > limits.max_pixels:
        error = f"image is {width}x{height} = {height * width} pixels, the limit is {limits.max_pixels}"
        raise BadImagesError([(index, ImageTooLargeError(error)) for index in range(shape[0])])
    return pixels_from_bytes(binary, shape) if tensor.data is None else pixels_from_json(tensor.data, shape)


def _files(tensor: InputTensor, binary: memoryview, limits: Limits) -> list[bytes]:
    if len(tensor.shape) != 1:
        raise MalformedBodyError(f"image: the shape {tensor.shape} is not [images]")
    _check_images(tensor.shape[0], limits)
    if tensor.data is None:
        return split_bytes(binary, tensor.shape[0])
    return bytes_from_json(tensor.data, tensor.shape[0])


def _check_images(count: int, limits: Limits) -> None:
    if count == 0:
        raise NoImagesError("the request holds no image")
    if count > limits.max_images:
        raise TooManyImagesError(f"{count} images in one request, at most {limits.max_images} are allowed")


def _outputs(request: InferenceRequest) -> list[Wanted]:
    binary = (request.parameters or {}).get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise OptionError("binary_data_output", "is neither true nor false; allowed: true, false")
    asked = request.outputs or [OutputTensor(name=name) for name in OUTPUTS]
    wanted = [_wanted(output, binary) for output in asked]
    if len({output.name for output in wanted}) < len(wanted):
        raise MalformedBodyError("outputs: one is asked for twice")
    return wanted


def _wanted(output: OutputTensor, binary: bool) -> Wanted:
    if output.name not in OUTPUTS:
        raise MalformedBodyError(f"output {output.name[:40]!a} is not known; there are {', '.join(OUTPUTS)}")
    given = output.parameters
    if given is None:
        return Wanted(output.name, binary)
    if given.classification is not None and output.name != "probabilities":
        raise MalformedBodyError(f"{output.name}: classification goes with probabilities alone")
    return Wanted(output.name, binary if given.binary_data is None else given.binary_data, given.classification)


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `POST /classify` among the parameters; `timeout`, in microseconds, is a deadline."""
    options = {
        name: value for name, value in parameters.items() if name not in RESERVED and not name.startswith("triton_")
    }
    timeout = parameters.get("timeout") or 0
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout <= MAX_TIMEOUT:
        raise OptionError("timeout", f"is no whole number of microseconds; allowed: 0 (none) to {MAX_TIMEOUT}")
    if timeout and "deadline_ms" not in options:
        options["deadline_ms"] = timeout / 1e3
    return options
