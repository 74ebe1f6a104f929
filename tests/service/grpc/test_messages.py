"""inference.proto against the authority: the descriptors that NVIDIA's client brings."""

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from msmlp.service.errors import MalformedBodyError
from msmlp.service.grpc.messages import METHODS, ModelInferRequest, parse

THEIRS = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
OURS = {
    name: message
    for method in METHODS.values()
    for kind in (method.request, method.response)
    for name, message in kind.DESCRIPTOR.file.message_types_by_name.items()
}


def form(field: FieldDescriptor) -> tuple[Any, ...]:
    """What must agree for two programs to understand each other; enums by the values that both know."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, field.is_required, kind and kind.full_name, oneof


def check(ours: Any, theirs: Any) -> None:
    assert ours.full_name == theirs.full_name
    for field in ours.fields:
        assert form(field) == form(theirs.fields_by_name[field.name]), field.full_name
        if field.enum_type:
            known = {value.name: value.number for value in theirs.fields_by_name[field.name].enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= known.items()
    for nested in ours.nested_types:
        check(nested, theirs.nested_types_by_name[nested.name])


def test_all_messages_are_seen() -> None:
    assert len(OURS) > 25
    assert {"InferParameter", "ModelConfig", "ModelStatistics", "ModelInferRequest"} <= set(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_field_is_theirs(name: str) -> None:
    check(OURS[name], THEIRS[name])


def test_a_field_that_differs_is_seen() -> None:
    with pytest.raises(AssertionError, match="dims"):
        check(OURS["ModelInput"], _Renamed(THEIRS["ModelInput"], THEIRS["ModelOutput"]))


class _Renamed:
    """Fields of one message under the name of another."""

    def __init__(self, name_of: Any, fields_of: Any) -> None:
        self.full_name, self.fields_by_name = name_of.full_name, fields_of.fields_by_name


def test_every_method_is_theirs() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, method in METHODS.items():
        theirs = service.methods_by_name[name]
        assert method.request.DESCRIPTOR.full_name == theirs.input_type.full_name
        assert method.response.DESCRIPTOR.full_name == theirs.output_type.full_name
        assert theirs.client_streaming == theirs.server_streaming == (name == "ModelStreamInfer")


def test_their_bytes_are_read() -> None:
    theirs = service_pb2.ModelInferRequest(id="a", raw_input_contents=[b"x"])
    theirs.parameters["n"].uint64_param = 2**63
    ours = parse(ModelInferRequest, theirs.SerializeToString())
    assert (ours.id, ours.raw_input_contents[0], ours.parameters["n"].uint64_param) == ("a", b"x", 2**63)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(MalformedBodyError, match="the message is not a ModelInferRequest"):
        parse(ModelInferRequest, b"\xff\xff")
