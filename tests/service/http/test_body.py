"""Bodies taken apart, without a server: what arrives is a scope and a stream of chunks."""

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from msmlp.service.http.body import RAW_TYPES, read_body
from msmlp.service.options import RequestOptions
from msmlp.service.parsing import Parser

BOUNDARY = "----a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Read(NamedTuple):
    images: list[bytes]
    options: RequestOptions


def read(
    content: bytes | Sequence[bytes],
    kind: str | None,
    *,
    query: str = "",
    declared: str | None = None,
    encoding: str | None = None,
    max_bytes: int = 10_000,
    max_json_bytes: int = 1_000_000,
    max_images: int = 4,
) -> Read:
    chunks = [content] if isinstance(content, bytes) else list(content)
    headers = [(b"content-type", kind.encode("latin-1"))] if kind is not None else []
    if declared is not None:
        headers.append((b"content-length", declared.encode()))
    if encoding is not None:
        headers.append((b"content-encoding", encoding.encode("latin-1")))
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        assert messages, "the body was read beyond its end"
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": headers}
    limits = {"max_bytes": max_bytes, "max_json_bytes": max_json_bytes, "max_images": max_images}
    return Read(*asyncio.run(read_body(Request(scope, receive), parse=Parser(0).run, **limits)))


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes, end: bool = True) -> bytes:
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def document(images: Any = (b"one",), **options: Any) -> bytes:
    encoded = [base64.b64encode(image).decode() for image in images] if not isinstance(images, str) else images
    return json.dumps({"images": encoded, **options}).encode()


@pytest.mark.parametrize("kind", RAW_TYPES)
def test_a_raw_body_is_one_image(kind: str) -> None:
    body = read([b"by", b"tes"], kind, query="top_k=3&policy=fast")
    assert body == Read([b"bytes"], RequestOptions(top_k=3, policy="fast"))


def test_the_content_types_parameters_and_case_do_not_matter() -> None:
    assert read(b"x", "Image/PNG; charset=binary").images == [b"x"]


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", "image/tiff", "binary/octet-stream", "", None])
def test_of_an_image_the_content_decides(kind: str | None) -> None:
    assert read(b"\x89PNG", kind).images == [b"\x89PNG"]


@pytest.mark.parametrize("kind", ["", None])
def test_json_without_a_content_type(kind: str | None) -> None:
    content = b" \r\n" + document([b"one"], top_k=2)
    assert read(content, kind) == Read([b"one"], RequestOptions(top_k=2))
    with pytest.raises(BodyTooLargeError, match="of JSON; at most 20 are allowed"):
        read(content, kind, max_json_bytes=20)


@pytest.mark.parametrize("kind", ["text/html", "image", "\xff"])
def test_another_content_type_lists_those_read(kind: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match=r"set Content-Type.* image/png, .*, application/json"):
        read(b"x", kind)


UNASKED = pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8"])


@UNASKED
def test_what_curl_and_fetch_declare_of_any_data_says_nothing(kind: str) -> None:
    assert read(b"\x89PNG\0", kind).images == [b"\x89PNG\0"]
    assert read(document([b"one"], top_k=2), kind) == Read([b"one"], RequestOptions(top_k=2))
    with pytest.raises(BodyTooLargeError, match="of JSON; at most 20 are allowed"):
        read(document([b"one"], top_k=2), kind, max_json_bytes=20)
    with pytest.raises(NoImagesError):  # the file was not there, curl says, and sends the rest
        read(b"", kind)


@UNASKED
@pytest.mark.parametrize("content", [b"https://example.com/cat.jpg", b"\xff\xd8JFIF", b"images=cat.jpg"])
def test_what_curl_makes_of_a_file_without_data_binary_is_told(content: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match=r"--data-binary @cat\.jpg.*; expected one of image/png"):
        read(content, kind)


@pytest.mark.parametrize("filename", ["a.png", "b"])
def test_a_form_with_images_under_both_names_and_options(filename: str) -> None:
    content = form(
        part("images", b"one", filename),
        part("thresholds", b"0.9,0.8"),
        part("image", b"two\r\n--not the boundary", filename),
        part("images", b"", filename),
    )
    body = read(content, FORM, query="top_k=2")
    assert body == Read([b"one", b"two\r\n--not the boundary", b""], RequestOptions(thresholds=(0.9, 0.8), top_k=2))


def test_a_form_in_many_chunks() -> None:
    content = form(part("images", bytes(range(256)) * 20, "a"), part("top_k", b"1"))
    for size in (1, 7, 1000):
        chunks = [content[start : start + size] for start in range(0, len(content), size)]
        assert read(chunks, FORM) == Read([bytes(range(256)) * 20], RequestOptions(top_k=1))


def test_a_large_image_in_a_form() -> None:
    image = b"\x00\xff" * 2_000_000
    assert read(form(part("images", image, "a")), FORM, max_bytes=10_000_000).images == [image]


def test_json() -> None:
    body = read(document([b"one", b"two"], thresholds=[0.9, 0.8], top_k=3), "application/json", query="min_exit=2")
    assert body == Read([b"one", b"two"], RequestOptions(thresholds=(0.9, 0.8), top_k=3, min_exit=2))


@pytest.mark.parametrize(
    "text",
    [
        "b25lIGltYWdl",
        "b25l\nIGlt\r\nYWdl\n",
        "\tb25l IGltYWdl ",
        "data:image/png;base64,b25lIGltYWdl",
        "data:;base64,b25l\nIGltYWdl",
    ],
)
def test_base64_in_lines_and_in_data_urls(text: str) -> None:
    assert read(json.dumps({"images": [text]}).encode(), "application/json").images == [b"one image"]


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "YQ",
        "_-8=",
        "\u00e9",
        "YQ==\u00a0",
        "data:image/png,YQ==",
        "data:image/png;base64",
        "DATA:image/png;base64,YQ==",
        "https://example.com/a.png",
    ],
)
def test_what_is_no_base64_is_named_by_its_place(text: str) -> None:
    content = json.dumps({"images": ["YQ==", text, "YQ=="]}).encode()
    with pytest.raises(
        MalformedBodyError,
        match=r"images\[1\] is (not base64; expected |a data: URL without|an address; send the image itself)",
    ):
        read(content, "application/json")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x-gzip", "gzip, identity", "\xff"])
def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match=r"content encoding .* is not supported"):
        read(b"x", "image/png", encoding=encoding)


def test_an_encoding_that_is_none() -> None:
    assert read(b"x", "image/png", encoding=" Identity").images == [b"x"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"images": "abc"}',
        b'{"images": {"0": "abc"}}',
        b'{"images": [1]}',
        b'{"images": [null]}',
    ],
)
def test_json_that_is_none_or_says_something_else(content: bytes) -> None:
    with pytest.raises(MalformedBodyError, match=None if content else "the body is empty; expected JSON"):
        read(content, "application/json", max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (form(part("images", b"x", "a")), "multipart/form-data"),
        (b"not a form", FORM),
        (form(part("images", b"x", "a")), "multipart/form-data; boundary=another"),
        (form(part("images", b"x", "a"), end=False), FORM),
        (form(part("images", b"x", "a"), part("images", b"y", "b"))[:-30], FORM),
        (form(part("pictures", b"x", "a")), FORM),
        (form(part("images", b"x")), FORM),
        (form(b"--" + BOUNDARY.encode() + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), FORM),
        (form(part("images", b"x", "a"), *[part(f"o{i}", b"1") for i in range(65)]), FORM),
    ],
    ids=[
        "no boundary",
        "no form",
        "another boundary",
        "not ended",
        "cut short",
        "unknown file",
        "image as a field",
        "no name",
        "too many fields",
    ],
)
def test_a_form_that_is_none_or_is_cut_short(content: bytes, kind: str) -> None:
    """Cut short matters most: what is missing may be an image."""
    with pytest.raises(MalformedBodyError):
        read(content, kind)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "image/png"),
        (form(part("top_k", b"1")), FORM),
        (b'{"images": []}', "application/json"),
        (b"{}", "application/json"),
    ],
)
def test_no_image(content: bytes, kind: str) -> None:
    with pytest.raises(NoImagesError, match="send an image as the body, form fields named images, or JSON"):
        read(content, kind)


def test_too_many_images() -> None:
    assert len(read(document([b"x"] * 4), "application/json").images) == 4
    with pytest.raises(TooManyImagesError, match="5 images in one request; at most 4"):
        read(document([b"x"] * 5), "application/json")
    assert len(read(form(*[part("images", b"x", "a")] * 4), FORM).images) == 4
    for count in (5, 6, 50):
        with pytest.raises(TooManyImagesError, match="4"):
            read(form(*[part("images", b"x", "a")] * count), FORM)


def test_too_many_bytes_by_their_declaration_are_not_even_read() -> None:
    class Unread(list):
        def __iter__(self) -> Any:
            raise AssertionError("the body was read")

    with pytest.raises(BodyTooLargeError, match="10001 bytes; at most 10000"):
        read(b"x" * 10_001, "image/png", declared="10001")


def test_too_many_bytes_are_noticed_whatever_was_declared() -> None:
    assert read(b"x" * 10_000, "image/png").images == [b"x" * 10_000]
    for declared in (None, "5", "nonsense"):
        with pytest.raises(BodyTooLargeError, match="more than 10000 bytes"):
            read([b"x" * 6_000, b"x" * 6_000, b"never read"], "image/png", declared=declared)


def test_json_has_a_limit_of_its_own() -> None:
    content = document([b"x" * 90])
    assert read(content, "application/json", max_json_bytes=len(content)).images == [b"x" * 90]
    for declared in (None, str(len(content))):
        with pytest.raises(BodyTooLargeError, match=r"at most 99 are allowed|more than 99 bytes"):
            read(content, "application/json", declared=declared, max_json_bytes=99)
    with pytest.raises(BodyTooLargeError, match="more than 50 bytes"):
        read(content, "application/json", max_bytes=50, max_json_bytes=99)
    assert read(content, "image/png", max_json_bytes=99).images == [content]


def test_a_large_text_is_read_as_a_small_one() -> None:
    image = b"\x00\xff" * 100_000
    body = read(document([image], top_k=2), "application/json", max_bytes=10**6)
    assert body == Read([image], RequestOptions(top_k=2))


@pytest.mark.parametrize(
    ("content", "kind", "query"),
    [
        (b"x", "image/png", "top_k=1&top_k=2"),
        (form(part("images", b"x", "a"), part("top_k", b"1"), part("top_k", b"1")), FORM, ""),
        (form(part("images", b"x", "a"), part("top_k", b"1")), FORM, "top_k=1"),
        (document(top_k=1), "application/json", "top_k=1"),
        (b'{"images": ["eA=="], "top_k": 1, "top_k": 2}', "application/json", ""),
    ],
)
def test_an_option_given_twice(content: bytes, kind: str, query: str) -> None:
    with pytest.raises(OptionError, match=r"top_k.*given more than once"):
        read(content, kind, query=query)


KINDS = st.sampled_from(
    [FORM, "application/json", "multipart/form-data", f"{FORM}; charset=utf-16", f"{FORM}; charset=zlib", "image/png"]
)
PIECES = st.sampled_from(
    [
        b"--" + BOUNDARY.encode(),
        b"--",
        b"\r\n",
        b"Content-Disposition: form-data",
        b'; name="images"',
        b'; name="top_k"',
        b'; filename="a"',
        b"; filename*=utf-8''%ff",
        b": ",
        b"\x00\xff",
        b"{",
        b"}",
        b'"images"',
        b'"\\ud800"',
        b": [",
        b'"eA=="',
        b"]",
        b",",
        b"1",
    ]
)


@given(st.lists(PIECES, max_size=25).map(b"".join), KINDS)
def test_whatever_is_sent_is_read_or_refused_in_words(content: bytes, kind: str) -> None:
    try:
        body = read(content, kind)
    except MsmlpError as error:
        str(error).encode()  # it goes into a JSON document
        return
    assert all(isinstance(image, bytes) for image in body.images)
    assert body.images
