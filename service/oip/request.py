"""An inference request, however it came → images, options, and the outputs asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import ImageTooLargeError, OptionError
from msmlp.service.errors import BadImagesError, MalformedBodyError, NoImagesError, TooManyImagesError
from msmlp.service.oip.model import INPUTS, OUTPUTS
from msmlp.service.oip.schema import InferenceRequest, InputTensor, OutputTensor
from msmlp.service.oip.tensors import files_from_elements, pixels_from_bytes, pixels_from_numbers, split_bytes

Data = memoryview | Sequence[Any] | NDArray[Any]
"""A tensor's data: little-endian bytes, or its elements (numbers flat or nested; files as bytes or base64 texts)."""

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


def take_apart(request: InferenceRequest, data_of: Callable[[InputTensor], Data], limits: Limits) -> Inference:
    """Take a request apart; `data_of` finds the data of its one tensor.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError; whatever `data_of` raises
    """
    tensor = _only_input(request)
    # The data is looked for only where shape and limits allow it.
    images = _IMAGES[tensor.name](tensor, lambda: data_of(tensor), limits)
    return Inference(images, _outputs(request), _options(request.parameters or {}), request.id)


def _only_input(request: InferenceRequest) -> InputTensor:
    if len(request.inputs) != 1:
        raise MalformedBodyError(f"{len(request.inputs)} inputs were sent; send one, pixels or image")
    tensor = request.inputs[0]
    if INPUTS.get(tensor.name) != tensor.datatype:
        allowed = " or ".join(f"{name} {datatype}" for name, datatype in INPUTS.items())
        raise MalformedBodyError(
            f"input {tensor.name[:40]!a} of datatype {tensor.datatype[:40]!a} is not known; send {allowed}"
        )
    return tensor


def _pixels(tensor: InputTensor, find: Callable[[], Data], limits: Limits) -> NDArray[np.uint8]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise MalformedBodyError(f"pixels: the shape {shape} is not [images, height, width, 3]")
    _check_images(shape[0], limits)
    height, width = shape[1:3]
    if height * width > limits.max_pixels:
        error = f"image is {width}x{height} = {height * width} pixels, the limit is {limits.max_pixels}"
        raise BadImagesError([(index, ImageTooLargeError(error)) for index in range(shape[0])])
    data = find()
    return pixels_from_bytes(data, shape) if isinstance(data, memoryview) else pixels_from_numbers(data, shape)


def _files(tensor: InputTensor, find: Callable[[], Data], limits: Limits) -> list[bytes]:
    if len(tensor.shape) != 1:
        raise MalformedBodyError(f"image: the shape {tensor.shape} is not [images]")
    _check_images(tensor.shape[0], limits)
    data, count = find(), tensor.shape[0]
    return split_bytes(data, count) if isinstance(data, memoryview) else files_from_elements(data, count)


_IMAGES: dict[str, Callable[[InputTensor, Callable[[], Data], Limits], list[bytes] | NDArray[np.uint8]]] = {
    "pixels": _pixels,
    "image": _files,
}


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
