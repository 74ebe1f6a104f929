"""Tensors from and to the two forms of the protocol: JSON lists and little-endian bytes."""

import base64
import binascii
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedBodyError

_PREFIX = struct.Struct("<I")
"""Before each BYTES element: its length."""


def pixels_from_bytes(raw: memoryview, shape: list[int]) -> NDArray[np.uint8]:
    """UINT8 data → an array over the same memory."""
    if len(raw) != math.prod(shape):
        raise MalformedBodyError(f"pixels: {len(raw)} bytes were sent, the shape {shape} has {math.prod(shape)}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def pixels_from_json(data: list[Any], shape: list[int]) -> NDArray[np.uint8]:
    """Numbers 0 to 255, flat or nested as the shape says → an array."""
    try:
        numbers = np.array(data)
    except (ValueError, OverflowError):  # lists of unequal length, or deeper than arrays go
        raise MalformedBodyError("pixels: data is nested unevenly") from None
    if numbers.size != math.prod(shape) or (numbers.ndim > 1 and list(numbers.shape) != shape):
        raise MalformedBodyError(
            f"pixels: data has the shape {list(numbers.shape)}, allowed: {shape} or [{math.prod(shape)}]"
        )
    if numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255):
        raise MalformedBodyError("pixels: data must be whole numbers 0 to 255")
    return numbers.astype(np.uint8).reshape(shape)


def split_bytes(raw: memoryview, count: int) -> list[bytes]:
    """BYTES data → its elements.

    Raises:
        MalformedBodyError: a length that goes beyond the end, or not `count` elements.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + _PREFIX.size
        if start > len(raw):
            raise MalformedBodyError(f"image: element {len(elements)} has no whole length of 4 bytes before it")
        (length,) = _PREFIX.unpack_from(raw, at)
        at = start + length
        if at > len(raw):
            left = len(raw) - start
            raise MalformedBodyError(f"image: element {len(elements)} claims {length} bytes, {left} are left")
        elements.append(bytes(raw[start:at]))
    _check_count(len(elements), count)
    return elements


def bytes_from_json(data: list[Any], count: int) -> list[bytes]:
    """Base64 texts → what they encode: JSON cannot hold a file as it is."""
    _check_count(len(data), count)
    try:
        if all(isinstance(element, str) for element in data):
            return [base64.b64decode(element, validate=True) for element in data]
    except (binascii.Error, ValueError):
        pass
    raise MalformedBodyError("image: data in JSON must be base64 texts, one a file")


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements → BYTES data."""
    return b"".join(part for element in elements for part in (_PREFIX.pack(len(element)), element))


def _check_count(given: int, count: int) -> None:
    if given != count:
        raise MalformedBodyError(f"image: {given} elements were sent, the shape has {count}")
