"""The JSON part of an inference request → its typed form. What the protocol does not name is skipped, never built.

A tensor's data stays text until its shape is known, and all else that is built is bounded.
"""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from msmlp.service.errors import MalformedBodyError

MAX_TENSORS = 16
"""Inputs or outputs of a request that are read; more than there are, so that the error can name what is expected."""

MAX_DIMENSIONS = 8

MAX_REST_BYTES = 2**18
"""Most bytes of JSON besides the data of the one input."""

NO_DATA = Raw(b"null")

Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class InputParameters(Struct, frozen=True):
    """`binary_data_size`: the number of bytes after the JSON that are this tensor's data; REST only."""

    binary_data_size: Size | None = None


class InputTensor(Struct, frozen=True):
    """An input; `data` is JSON that was not read yet, when it is in the JSON."""

    name: str
    datatype: str
    shape: Annotated[list[Size], Meta(max_length=MAX_DIMENSIONS)]
    parameters: InputParameters | None = None
    data: Raw = NO_DATA

    @property
    def binary_size(self) -> int | None:
        """The length of its data after the JSON; None when its data is in the JSON."""
        return self.parameters.binary_data_size if self.parameters else None

    @property
    def text(self) -> bytes | None:
        """Its data in the JSON."""
        return None if self.data == NO_DATA else bytes(self.data)


class OutputParameters(Struct, frozen=True):
    """`binary_data`: send it after the JSON (REST only); `classification`: send this many likeliest classes instead."""

    binary_data: bool | None = None
    classification: Annotated[int, Meta(ge=1)] | None = None


class OutputTensor(Struct, frozen=True):
    name: str
    parameters: OutputParameters | None = None


class InferenceRequest(Struct, frozen=True):
    inputs: Annotated[list[InputTensor], Meta(max_length=MAX_TENSORS)]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[OutputTensor], Meta(max_length=MAX_TENSORS)] | None = None


class _OnlyData(Struct, frozen=True):
    data: Raw = NO_DATA


class _FirstInput(Struct, frozen=True, array_like=True):
    """Of a list the first element; others are skipped."""

    tensor: _OnlyData = _OnlyData()


class _Sizes(Struct, frozen=True):
    """Enough of a request to measure it, whatever it holds."""

    inputs: _FirstInput = _FirstInput()


_SIZES = msgspec.json.Decoder(_Sizes)
_REQUEST = msgspec.json.Decoder(InferenceRequest)


def parse_request(content: bytes | dict[str, Any]) -> InferenceRequest:
    """The JSON part of a request, or the same as plain data.

    Raises:
        MalformedBodyError: not JSON, or not a request of the protocol.
    """
    try:
        if isinstance(content, dict):
            return msgspec.convert(content, InferenceRequest)
        rest = len(content) - len(_SIZES.decode(content).inputs.tensor.data)
        if rest > MAX_REST_BYTES:
            raise MalformedBodyError(
                f"the JSON has {rest} bytes besides the data of its first input; at most {MAX_REST_BYTES} are allowed"
            )
        return _REQUEST.decode(content)
    except msgspec.ValidationError as error:
        raise MalformedBodyError(_in_words(str(error))) from None
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: not UTF-8
        raise MalformedBodyError("the JSON part of the request is not JSON") from None


_NOUNS = {"array": "list", "bool": "boolean", "int": "integer", "str": "string"}
_PLAIN = (
    (r"Object missing required field `\w+`?", r"Field required"),
    (r"Expected `array` of length <= (\d+)", r"List should have at most \1 items"),
    (r"Expected `int` >= (\d+)", r"expected at least \1"),
    (r"Expected `int` <= (\d+)", r"expected at most \1"),
    (r"Expected `object\b.*", r"expected an object"),
    (r"Expected `(array|bool|int|str)\b.*", lambda found: f"expected a valid {_NOUNS[found[1]]}"),
)


def _in_words(theirs: str) -> str:
    """A text of msgspec's as `inputs.0.name: what is wrong`."""
    wrong, _, path = theirs.removesuffix("`").partition(" - at `$")
    if missing := re.search(r"field `(\w+)", wrong):
        path += f".{missing[1]}"
    place = re.sub(r"\[(\w+)\]", r".\1", path).strip(".")
    for pattern, ours in _PLAIN:
        wrong = re.sub(pattern, ours, wrong)
    return f"{place or 'the JSON part of the request'}: {wrong}"
