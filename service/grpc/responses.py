"""Outputs → a ModelInferResponse."""

from collections.abc import Iterable
from typing import Any

from msmlp.service.grpc.messages import InferParameter, ModelInferResponse
from msmlp.service.oip.response import Tensor, tensor_bytes

_CHOICES = {bool: "bool_param", int: "int64_param", str: "string_param"}


def write_response(head: dict[str, Any], tensors: Iterable[Tensor]) -> Any:
    """`head` and outputs; all data is raw, as Triton sends it whatever a request had."""
    response = ModelInferResponse(model_name=head["model_name"], model_version=head["model_version"], id=head["id"])
    set_parameters(response, head["parameters"])
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(bytes(tensor_bytes(tensor)))
    return response


def set_parameters(response: Any, values: dict[str, Any]) -> None:
    """Add parameters to a response."""
    for name, value in values.items():
        response.parameters[name].CopyFrom(InferParameter(**{_CHOICES[type(value)]: value}))
