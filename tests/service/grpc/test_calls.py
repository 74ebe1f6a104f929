import grpc
import pytest

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import STATUS, BodyTooLargeError, OverloadedError, StartingError
from msmlp.service.grpc.calls import CODES, Refusal
from tests import reloads

GIVEN = {
    "malformed_body": "INVALID_ARGUMENT",
    "unauthorized": "UNAUTHENTICATED",
    "body_too_large": "INVALID_ARGUMENT",
    "too_many_images": "INVALID_ARGUMENT",
    "image_too_large": "INVALID_ARGUMENT",
    "too_many_pixels": "INVALID_ARGUMENT",
    "unsupported_media_type": "INVALID_ARGUMENT",
    "unknown_model": "NOT_FOUND",
    "no_images": "INVALID_ARGUMENT",
    "undecodable_image": "INVALID_ARGUMENT",
    "bad_option": "INVALID_ARGUMENT",
    "expired": "DEADLINE_EXCEEDED",
    "overloaded": "RESOURCE_EXHAUSTED",
    "rate_limited": "RESOURCE_EXHAUSTED",
    "starting": "UNAVAILABLE",
    "draining": "UNAVAILABLE",
    "engine_down": "UNAVAILABLE",
    "no_memory": "UNAVAILABLE",
    "unanswered": "UNAVAILABLE",
    "body_timeout": "DEADLINE_EXCEEDED",
    "internal": "INTERNAL",
}


HERE = [kind for kind, (_, code) in STATUS.items() if code not in reloads.CODES]


@pytest.mark.parametrize("kind", HERE, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code(kind: type[MsmlpError]) -> None:
    text = "/home/someone is wrong"
    refusal = Refusal.of(OptionError("policy", text) if kind is OptionError else kind(text))
    code = CODES[refusal.status]  # type: ignore[index]
    assert code == grpc.StatusCode[GIVEN[STATUS[kind][1]]]
    assert ("someone" in refusal.detail) == (code != grpc.StatusCode.INTERNAL)


def test_when_to_come_again_is_said_in_milliseconds() -> None:
    assert Refusal.of(OverloadedError("full", 3)).metadata == (("retry-pushback-ms", "3000"),)
    assert Refusal.of(StartingError("warming up")).metadata == (("retry-pushback-ms", "1000"),)
    assert Refusal.of(BodyTooLargeError("too large")).metadata == ()
