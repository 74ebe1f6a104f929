"""The JSON body of `POST /classify` → encoded images and options.

Its members are taken out as text at first: each is built only once it is known to be no larger than it may be.
"""

import base64
from typing import Any

import msgspec
from msgspec import Raw

from msmlp.service.errors import MalformedBodyError, TooManyImagesError
from msmlp.service.options import MAX_TEXT, bad_value, check_known, given_twice

EXPECTED = 'expected {"images": ["<base64>", ...], ...options}'
_BOM = b"\xef\xbb\xbf"


class _Name(str):
    """A member's name. A type that msgspec does not know, so that it asks about each one as soon as it is read."""


def read_json(content: bytes, max_images: int) -> tuple[list[bytes], dict[str, Any]]:
    """Encoded images, and raw options by name.

    Raises:
        MalformedBodyError, TooManyImagesError, OptionError
    """
    if not content:
        raise MalformedBodyError("the body is empty; expected JSON")
    members = _members(content.removeprefix(_BOM))
    encoded = _texts(bytes(members.pop("images", b"[]")), max_images)
    options = {name: _value(name, raw) for name, raw in members.items()}
    return [_base64(index, text) for index, text in enumerate(encoded)], options


def _members(content: bytes) -> dict[str, Raw]:
    seen = set[str]()

    def check(_: type, name: str) -> _Name:
        if name in seen:
            raise given_twice(name)
        if name != "images":
            check_known([name], "images")
        seen.add(name)
        return _Name(name)

    try:
        members = msgspec.json.Decoder(dict[_Name, Raw], dec_hook=check).decode(content)
    except msgspec.ValidationError:
        raise MalformedBodyError(EXPECTED) from None
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: not UTF-8
        raise MalformedBodyError("the body is not JSON") from None
    return {str(name): raw for name, raw in members.items()}


def _texts(array: bytes, max_images: int) -> list[str]:
    # An image has at most one comma of its own, in a data: URL.
    if array.startswith(b"[") and array.count(b",") >= 2 * max_images:
        if not array[1:64].lstrip().startswith(b'"'):  # lists of pixels
            raise MalformedBodyError(EXPECTED)
        raise TooManyImagesError(f"more than {max_images} images in one request")
    try:
        texts = _TEXTS.decode(array)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise MalformedBodyError(EXPECTED) from None
    if len(texts) > max_images:
        raise TooManyImagesError(f"{len(texts)} images in one request; at most {max_images} are allowed")
    return texts


def _value(name: str, raw: Raw) -> Any:
    if len(raw) > MAX_TEXT:
        raise bad_value(name)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError):  # a number that no machine has
        raise bad_value(name) from None


def _base64(index: int, text: str) -> bytes:
    """Standard base64, wrapped into lines or not, or a data: URL."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not head.endswith(";base64") or not comma:
            raise MalformedBodyError(f"images[{index}] is a data: URL without ;base64,")
    try:
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are ones
        if text.startswith(("http://", "https://", "file://")):
            raise MalformedBodyError(f"images[{index}] is an address; send the image itself, in base64") from None
        raise MalformedBodyError(
            f"images[{index}] is not base64; expected the standard alphabet, padded, or a data: URL"
        ) from None


_TEXTS = msgspec.json.Decoder(list[str])
