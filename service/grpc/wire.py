"""What a ModelInferRequest would be once parsed, found in its bytes: two of them can become an object of a hundred.

The fields of a message are counted without building them, down to a tensor's contents. All other bytes are few.
"""

from collections.abc import Iterator

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError
from msmlp.service.oip.document import MAX_REST_BYTES

MAX_FIELDS = 2**16
"""Most fields of one message; more than a request may have images or parameters."""

INPUTS, RAW, CONTENTS, FILES = 5, 7, 5, 8
"""Field numbers in inference.proto: of a request, of a request, of a tensor, of contents."""

_FIXED = {1: 8, 5: 4}


def check_message(content: bytes, max_numbers: int) -> None:
    """`max_numbers` limits the bytes of numbers in contents; files and raw contents are taken as they are.

    Raises:
        MalformedBodyError, BodyTooLargeError
    """
    rest = len(content)
    try:
        for number, part in _fields(memoryview(content)):
            if number == RAW:
                rest -= len(part)
            elif number == INPUTS:
                for inner, contents in _fields(part):
                    if inner == CONTENTS:
                        rest -= len(contents)
                        _check_contents(contents, max_numbers)
    except IndexError:
        raise MalformedBodyError("the message is not a ModelInferRequest") from None
    if rest > MAX_REST_BYTES:
        raise MalformedBodyError(f"the message has {rest} bytes besides its data; at most {MAX_REST_BYTES} are allowed")


def _check_contents(contents: memoryview, max_numbers: int) -> None:
    numbers = len(contents) - sum(len(part) for number, part in _fields(contents) if number == FILES)
    if numbers > max_numbers:
        raise BodyTooLargeError(
            f"contents has {numbers} bytes of numbers; at most {max_numbers} are allowed: use raw_input_contents"
        )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; others are counted only."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at >= len(message):
            return
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise IndexError  # a group: the protocol has none
    raise MalformedBodyError(f"a message has more than {MAX_FIELDS} fields; numbers go packed, or raw_input_contents")


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
