"""The body of an inference request over REST: JSON, and the bytes that may follow it."""

from msmlp.service.errors import MalformedBodyError
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import Data, Inference, Limits, Wanted, take_apart
from msmlp.service.oip.schema import InputTensor, parse_json


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
    return take_apart(request, lambda tensor: _data(tensor, content[length:]), limits)


def _length(given: str | None, size: int) -> int:
    if given is None:
        return size or 1  # an empty body is bad JSON, not a raw image
    if not (given.isascii() and given.isdigit() and len(given) < 20) or int(given) > size:
        raise MalformedBodyError(
            f"Inference-Header-Content-Length is {given[:40]!a}; allowed: 0 to {size}, the size of the body"
        )
    return int(given)


def _data(tensor: InputTensor, binary: memoryview) -> Data:
    if (tensor.binary_size is None) == (tensor.data is None):
        raise MalformedBodyError(f"{tensor.name}: send its data in the JSON, or after it with binary_data_size")
    if len(binary) != (tensor.binary_size or 0):
        raise MalformedBodyError(
            f"{len(binary)} bytes follow the JSON, binary_data_size says {tensor.binary_size or 0}"
        )
    return binary if tensor.data is None else tensor.data
