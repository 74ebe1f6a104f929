"""Compressed bodies."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError
from msmlp.service.oip.request import decompress

PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", " GZIP", "", "identity"]))
def test_what_is_packed_comes_back(content: bytes, encoding: str) -> None:
    pack = PACK.get(encoding.strip().lower(), bytes)
    assert decompress(pack(content), encoding, 300) == content


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_not_held(encoding: str) -> None:
    packed = PACK[encoding](bytes(10**6))
    assert len(packed) < 5000
    with pytest.raises(BodyTooLargeError, match="decompressed body has more than 999999 bytes"):
        decompress(packed, encoding, 10**6 - 1)
    assert decompress(packed, encoding, 10**6) == bytes(10**6)


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b, lambda b: b""])
def test_damaged_streams(encoding: str, damage: object) -> None:
    with pytest.raises(MalformedBodyError):
        decompress(damage(PACK[encoding](b"content")), encoding, 100)  # type: ignore[operator]


def test_an_unknown_encoding() -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="'br' is not supported; expected gzip or deflate"):
        decompress(b"x", "br", 100)
