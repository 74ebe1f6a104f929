"""An inference request as clients send it, in JSON or over gRPC. Members the protocol does not know are ignored."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msmlp.service.errors import MalformedBodyError

MAX_TENSORS = 16
"""Inputs or outputs of one request that are looked at; there are fewer, but whoever sends one too many is told so."""

MAX_DIMENSIONS = 8

Size = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class InputParameters(_Part):
    """`binary_data_size`: so many bytes after the JSON are this tensor's. REST's alone."""

    binary_data_size: Size | None = None


class InputTensor(_Part):
    """A tensor given; its data is here only when it is in the JSON."""

    name: str
    datatype: str
    shape: list[Size] = Field(max_length=MAX_DIMENSIONS, fail_fast=True)
    parameters: InputParameters | None = None
    data: list[Any] | None = None

    @property
    def binary_size(self) -> int | None:
        """Its bytes after the JSON; None when its data is in the JSON."""
        return self.parameters.binary_data_size if self.parameters else None


class OutputParameters(_Part):
    """`binary_data`: send it after the JSON (REST's alone); `classification`: send so many best classes instead."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None


class OutputTensor(_Part):
    """A tensor asked for."""

    name: str
    parameters: OutputParameters | None = None


class InferenceRequest(_Part):
    """The JSON of `POST .../infer`, and what a ModelInferRequest has of it."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InputTensor] = Field(max_length=MAX_TENSORS, fail_fast=True)
    outputs: list[OutputTensor] | None = Field(default=None, max_length=MAX_TENSORS, fail_fast=True)


def parse_json(content: bytes) -> InferenceRequest:
    """The JSON part of a request.

    Raises:
        MalformedBodyError: no JSON, or not the protocol's.
    """
    try:
        return InferenceRequest.model_validate_json(content)
    except ValidationError as error:
        raise _malformed(error) from None


def parse_document(document: dict[str, Any]) -> InferenceRequest:
    """The same from what another form of the protocol has held; MalformedBodyError likewise."""
    try:
        return InferenceRequest.model_validate(document)
    except ValidationError as error:
        raise _malformed(error) from None


def _malformed(error: ValidationError) -> MalformedBodyError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the request's JSON part"
    return MalformedBodyError(f"{place}: {first['msg']}")
