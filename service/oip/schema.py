"""An inference request as clients send it, in JSON or over gRPC. Unknown members are ignored."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msmlp.model.errors import first_mistake
from msmlp.service.errors import MalformedBodyError

MAX_TENSORS = 16
"""Inputs or outputs of a request that are read; more than there are, so that the error can name what is expected."""

MAX_DIMENSIONS = 8

Size = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class InputParameters(_Part):
    """`binary_data_size`: the number of bytes after the JSON that are this tensor's data; REST only."""

    binary_data_size: Size | None = None


class InputTensor(_Part):
    """An input; `data` only when it is in the JSON."""

    name: str
    datatype: str
    shape: list[Size] = Field(max_length=MAX_DIMENSIONS, fail_fast=True)
    parameters: InputParameters | None = None
    data: list[Any] | None = None

    @property
    def binary_size(self) -> int | None:
        """The length of its data after the JSON; None when its data is in the JSON."""
        return self.parameters.binary_data_size if self.parameters else None


class OutputParameters(_Part):
    """`binary_data`: send it after the JSON (REST only); `classification`: send this many likeliest classes instead."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None


class OutputTensor(_Part):
    name: str
    parameters: OutputParameters | None = None


class InferenceRequest(_Part):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InputTensor] = Field(max_length=MAX_TENSORS, fail_fast=True)
    outputs: list[OutputTensor] | None = Field(default=None, max_length=MAX_TENSORS, fail_fast=True)


def parse_request(content: bytes | dict[str, Any]) -> InferenceRequest:
    """The JSON part of a request, or the same as plain data.

    Raises:
        MalformedBodyError: not JSON, or not a request of the protocol.
    """
    try:
        if isinstance(content, bytes):
            return InferenceRequest.model_validate_json(content)
        return InferenceRequest.model_validate(content)
    except ValidationError as error:
        place, wrong = first_mistake(error)
        raise MalformedBodyError(f"{place or 'the JSON part of the request'}: {wrong}") from None
