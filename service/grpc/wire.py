"""What a ModelInferRequest would be once parsed, found in its bytes: two of them can become an object of a hundred.

The fields of a message are counted without building them, down to a tensor's contents. All other bytes are few.
"""

from collections.abc import Collection, Iterator
from itertools import islice

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError
from msmlp.service.oip.document import MAX_REST_BYTES

MAX_FIELDS = 2**16
"""Most fields of a request, those of its tensors and their contents included; each is some steps in Python."""

MAX_PARTS = 128
"""Most fields of a small request itself, such as tensors and parameters; fewer are allowed, in words of their own."""

INPUTS, RAW, CONTENTS, FILES = 5, 7, 5, 8
"""Field numbers in inference.proto: of a request, of a request, of a tensor, of contents."""

_DATA = {(RAW,), (INPUTS, CONTENTS, FILES)}
_NESTED = {(INPUTS,), (INPUTS, CONTENTS)}

_FIXED = {1: 8, 5: 4}


def check_message(content: bytes, max_numbers: int) -> None:
    """`max_numbers` limits the bytes of numbers in contents; files and raw contents are taken as they are.

    Raises:
        MalformedBodyError, BodyTooLargeError
    """
    rest = numbers = 0
    try:
        for path, size in _fields(memoryview(content), iter(range(MAX_FIELDS))):
            if path[:2] == (INPUTS, CONTENTS) and len(path) > 2:
                numbers += size
            else:
                rest += size
            if numbers > max_numbers:
                raise BodyTooLargeError(
                    f"contents has more than {max_numbers} bytes of numbers: use raw_input_contents"
                )
            if rest > MAX_REST_BYTES:
                raise MalformedBodyError(f"the message has more than {MAX_REST_BYTES} bytes besides its data")
    except IndexError:
        raise MalformedBodyError("the message is not a ModelInferRequest") from None


def check_parts(content: bytes) -> None:
    """Of a small message only the number of its parts can cost much; what is in them is skipped.

    Raises:
        MalformedBodyError
    """
    try:
        parts = _fields(memoryview(content), iter(range(MAX_FIELDS)), nested=())
        if next(islice(parts, MAX_PARTS, None), None):
            raise MalformedBodyError(f"more than {MAX_PARTS} tensors and parameters")
    except IndexError:
        raise MalformedBodyError("the message is not a ModelInferRequest") from None


def _fields(
    message: memoryview,
    left: Iterator[int],
    above: tuple[int, ...] = (),
    nested: Collection[tuple[int, ...]] = _NESTED,
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Field numbers from the request down, and size, of every field; of data and of what is nested only the head's.

    `left` has an item for each field that the whole request may still have.
    """
    at = 0
    while at < len(message):
        if next(left, None) is None:
            raise MalformedBodyError(f"more than {MAX_FIELDS} fields; send numbers packed, or in raw_input_contents")
        start = at
        tag, at = _varint(message, at)
        kind, path = tag & 7, (*above, tag >> 3)
        part = message[:0]
        if kind == 2:
            size, at = _varint(message, at)
            part = message[at : at + size]
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise IndexError  # a group: the protocol has none
        skipped = path in _DATA or path in nested
        yield path, at - start + (0 if skipped else len(part))
        if path in nested:
            yield from _fields(part, left, path)
        at += len(part)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends; IndexError at the end of the message."""
    value = shift = 0
    while (byte := message[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise IndexError
    return value | byte << shift, at + 1
