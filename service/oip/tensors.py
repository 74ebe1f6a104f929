"""Tensors → pixels and files: little-endian bytes, the text of JSON, or numbers from a message.

What is there is counted before any of it is built, so a tensor never costs more than its shape says.
"""

import base64
import math
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from msmlp.service.errors import MalformedBodyError

PREFIX = struct.Struct("<I")
"""Before each BYTES element: its length."""

CHUNK = 2**16
"""Numbers, or bytes of their text, that are read in one go: a millisecond in which no other thread runs."""

NO_NUMBERS = "pixels: expected whole numbers from 0 to 255"


def pixels_from_bytes(raw: memoryview, shape: list[int]) -> NDArray[np.uint8]:
    """UINT8 data → an array over the same memory."""
    if len(raw) != math.prod(shape):
        raise MalformedBodyError(f"pixels: {len(raw)} bytes were sent; shape {shape} has {math.prod(shape)}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def pixels_from_json(text: bytes, shape: list[int]) -> NDArray[np.uint8]:
    """A JSON list of numbers 0 to 255, flat or nested as the shape says → an array."""
    marks, size = text.translate(None, b"0123456789 \t\r\n"), math.prod(shape)
    if marks.translate(None, b"[],"):  # a sign, a fraction, or no number at all
        raise MalformedBodyError(NO_NUMBERS)
    even = marks.count(b",") == size - 1 and (marks == b"[" + b"," * (size - 1) + b"]" or marks == _nested(shape))
    if not even:
        raise MalformedBodyError(f"pixels: data has shape other than {shape} and [{size}], or is nested unevenly")
    return _joined(_lists(text.translate(None, b"[]")), shape)


def pixels_from_numbers(numbers: Sequence[int], shape: list[int]) -> NDArray[np.uint8]:
    """A message's numbers, one after the other → an array."""
    if len(numbers) != math.prod(shape):
        raise MalformedBodyError(f"pixels: data has shape [{len(numbers)}]; expected [{math.prod(shape)}]")
    return _joined((numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)), shape)


def _joined(lists: Iterable[Sequence[int]], shape: list[int]) -> NDArray[np.uint8]:
    try:
        raw = b"".join(map(bytes, lists))
    except ValueError:
        raise MalformedBodyError(NO_NUMBERS) from None
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _nested(shape: list[int]) -> bytes:
    """The brackets and commas of lists nested as the shape says."""
    marks = b""
    for length in reversed(shape):
        marks = b"[" + b",".join([marks] * length) + b"]"
    return marks


def _lists(text: bytes) -> Iterator[list[int]]:
    """The numbers between commas, some at a time."""
    start = 0
    while start < len(text):
        end = text.find(b",", start + CHUNK)
        end = len(text) if end < 0 else end
        try:
            yield _NUMBERS.decode(b"[%b]" % text[start:end])
        except msgspec.DecodeError:  # too many digits
            raise MalformedBodyError(NO_NUMBERS) from None
        start = end + 1


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
    check_count(len(elements), count)
    return elements


def files_from_json(text: bytes, count: int) -> list[bytes]:
    """A JSON list of base64 strings → files."""
    if (commas := text.count(b",")) >= count:  # base64 has none
        raise MalformedBodyError(f"image: {commas + 1} elements were sent; the shape has {count}")
    try:
        elements = _TEXTS.decode(text)
        check_count(len(elements), count)
        return [base64.b64decode(element, validate=True) for element in elements]
    except (msgspec.DecodeError, ValueError):
        raise MalformedBodyError("image: expected base64 strings in JSON, one per file") from None


def check_count(given: int, count: int) -> None:
    if given != count:
        raise MalformedBodyError(f"image: {given} elements were sent; the shape has {count}")


_NUMBERS = msgspec.json.Decoder(list[int])
_TEXTS = msgspec.json.Decoder(list[str])
