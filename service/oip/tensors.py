"""Tensors in the two forms of the protocol, lists and little-endian bytes, to arrays and back."""

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.errors import MalformedBodyError

_PREFIX = struct.Struct("<I")
"""Before each BYTES element: its length."""


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
        raise MalformedBodyError("pixels: data must be whole numbers from 0 to 255")
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
        start = at + _PREFIX.size
        if start > len(raw):
            raise MalformedBodyError(f"image: the 4-byte length before element {len(elements)} is cut short")
        (length,) = _PREFIX.unpack_from(raw, at)
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
        raise MalformedBodyError("image: data in JSON must be base64 strings, one per file") from None


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError
    return base64.b64decode(text, validate=True)


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements → BYTES data."""
    return b"".join(part for element in elements for part in (_PREFIX.pack(len(element)), element))


def _check_count(given: int, count: int) -> None:
    if given != count:
        raise MalformedBodyError(f"image: {given} elements were sent; the shape has {count}")
