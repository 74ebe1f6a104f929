"""The protocol's messages and methods, made from the description of inference.proto that the build has written.

They live in a pool of their own, as a pool holds a name once and every client of the protocol brings the same names.
And no Python is generated: code that one protoc has written runs under no older protobuf than its own.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from msmlp.service.errors import MalformedBodyError

DESCRIPTION = files("msmlp.service.grpc") / "inference.binpb"
SERVICE = "inference.GRPCInferenceService"


@dataclass(frozen=True)
class Method:
    """A method of the service, with the classes of its messages."""

    name: str
    request: Any
    response: Any


def parse(kind: Any, content: bytes) -> Any:
    """Bytes → a message; MalformedBodyError when they are none."""
    try:
        return kind.FromString(content)
    except DecodeError:
        raise MalformedBodyError(f"the message is no {kind.DESCRIPTOR.name}") from None


_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file:
    _pool.Add(_file)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


METHODS = {
    method.name: Method(method.name, _message(method.input_type.name), _message(method.output_type.name))
    for method in _pool.FindServiceByName(SERVICE).methods
}
InferParameter = _message("InferParameter")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
ModelStreamInferResponse = _message("ModelStreamInferResponse")
