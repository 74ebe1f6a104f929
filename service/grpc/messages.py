"""The protocol's messages and methods, made from the descriptors of inference.proto that the build writes.

They have a pool of their own: a pool holds a name once, and every client of the protocol brings the same names. No
Python code is generated, as it would not run with a protobuf older than the one that generated it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from msmlp.service.errors import MalformedBodyError
from msmlp.service.oip.document import MAX_DIMENSIONS, MAX_TENSORS, InputTensor, parse_request
from msmlp.service.oip.request import Data, Inference, Limits, to_inference
from msmlp.service.oip.response import Tensor, tensor_bytes

DESCRIPTION = files("msmlp.service.grpc") / "inference.binpb"
SERVICE = "inference.GRPCInferenceService"


@dataclass(frozen=True)
class Method:
    """A method's message classes."""

    request: Any
    response: Any


def parse(kind: Any, content: bytes) -> Any:
    """Bytes → a message, or MalformedBodyError."""
    try:
        return kind.FromString(content)
    except DecodeError:
        raise MalformedBodyError(f"the message is not a {kind.DESCRIPTOR.name}") from None


_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file:
    _pool.Add(_file)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


METHODS = {
    method.name: Method(_message(method.input_type.name), _message(method.output_type.name))
    for method in _pool.FindServiceByName(SERVICE).methods
}
InferParameter = _message("InferParameter")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
ModelStreamInferResponse = _message("ModelStreamInferResponse")


MAX_PARAMETERS = 64
"""Far more than there are options."""


def read_inference(message: Any, limits: Limits) -> Inference:
    """Check a ModelInferRequest and read its images.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError
    """
    _check_counts(message)
    request = parse_request(
        {
            "id": message.id or None,
            "parameters": _values(message.parameters),
            "inputs": [
                {"name": t.name, "datatype": t.datatype, "shape": list(t.shape[: MAX_DIMENSIONS + 1])}
                for t in message.inputs
            ],
            "outputs": [{"name": t.name, "parameters": _values(t.parameters)} for t in message.outputs],
        }
    )
    return to_inference(request, lambda tensor: _data(tensor, message), limits)


def _check_counts(message: Any) -> None:
    """First of all: an empty tensor is only two bytes on the wire."""
    for name, sent in (
        ("inputs", message.inputs),
        ("outputs", message.outputs),
        ("parameters", message.parameters),
        *(("parameters", tensor.parameters) for tensor in message.outputs[:MAX_TENSORS]),
    ):
        most = MAX_PARAMETERS if name == "parameters" else MAX_TENSORS
        if len(sent) > most:
            raise MalformedBodyError(f"{name}: {len(sent)} were sent; at most {most} are allowed")


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """None for a parameter that was sent without a value."""
    chosen = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) if choice else None for name, choice in chosen.items()}


def _data(tensor: InputTensor, message: Any) -> Data:
    [sent], raw = message.inputs, message.raw_input_contents
    if sent.HasField("contents") == bool(raw) or len(raw) > 1:
        raise MalformedBodyError(
            f"{tensor.name}: expected data in contents, or as the only element of raw_input_contents"
        )
    if raw:
        return memoryview(raw[0])
    data: Sequence[Any] = sent.contents.bytes_contents if tensor.name == "image" else sent.contents.uint_contents
    return data


_CHOICES = {bool: "bool_param", int: "int64_param", str: "string_param"}


def write_response(head: dict[str, Any], tensors: Iterable[Tensor]) -> Any:
    """A ModelInferResponse; all data is raw, as Triton sends it."""
    response = ModelInferResponse(model_name=head["model_name"], model_version=head["model_version"], id=head["id"])
    set_parameters(response, head["parameters"])
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(bytes(tensor_bytes(tensor)))
    return response


def set_parameters(response: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        response.parameters[name].CopyFrom(InferParameter(**{_CHOICES[type(value)]: value}))
