"""The body and the query of `POST /classify` → encoded images and options: raw bytes, multipart forms, JSON."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import lru_cache, partial
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from msmlp.service.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from msmlp.service.http.json_body import read_json
from msmlp.service.options import MAX_TEXT, RequestOptions, given_twice, parse_options

RAW_TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/avif",
    "application/octet-stream",
)
SLICE = 2**16
IMAGE_PARTS = ("images", "image")
CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")
"""What a form may name; some other codecs of Python, which Starlette would use, take seconds."""
MAX_TYPE = 1000
"""Bytes of a Content-Type; its parser takes quadratic time."""
MAX_FIELDS = 64
"""Fields of a form besides images: far more than there are options."""
MAX_FIELD = 4 * MAX_TEXT
"""Bytes of such a field."""
_UNASKED = ("application/x-www-form-urlencoded", "text/plain")
"""What curl declares of any data and fetch of any text, so that nothing is known of it."""
_KINDS = (*RAW_TYPES, "multipart/form-data", "application/json")
_RAW = {*RAW_TYPES, "binary/octet-stream"}  # S3's
_DECLARED = (b"content-type", b"content-encoding")

Parse = Callable[[str, int, Callable[[], Any]], Awaitable[Any]]
"""Does work: its kind, how many bytes it is on, and the work itself."""
_Parts = tuple[list[bytes], dict[str, Any]]
"""Encoded images, and raw options by name."""


async def read_body(
    request: Request, *, max_bytes: int, max_json_bytes: int, max_images: int, parse: Parse
) -> tuple[list[bytes], RequestOptions]:
    """Encoded images and options of a request, never holding more than `max_bytes` of its body.

    JSON may have at most `max_json_bytes`; `parse` reads it where it is large (Parser.run).

    Raises:
        BodyTooLargeError, TooManyImagesError, UnsupportedMediaTypeError, MalformedBodyError, NoImagesError, OptionError
        What `parse` raises.
    """
    declared = {name: value for name, value in reversed(request.scope["headers"]) if name in _DECLARED}
    kind = _kind(declared.get(b"content-type", b""), declared.get(b"content-encoding", b""))
    content = await read_content(request, min(max_bytes, max_json_bytes) if kind == "application/json" else max_bytes)
    # Nothing declared: no image begins like JSON.
    json = kind == "application/json" or (kind in ("", *_UNASKED) and content[:64].lstrip()[:1] == b"{")
    if kind in _UNASKED and content and not json and b"\0" not in content:  # as every image has, but for curl's -d
        raise _unsupported(
            kind, "send a file as the body (curl --data-binary @cat.jpg) or in a form (-F images=@cat.jpg)"
        )
    if json and len(content) > max_json_bytes:
        raise BodyTooLargeError(f"the body has {len(content)} bytes of JSON; at most {max_json_bytes} are allowed")
    if kind == "multipart/form-data":
        images, options = await _multipart(content, request.headers, max_images)
    elif json:
        work = partial(read_json, content, max_images)
        images, options = work() if len(content) <= SLICE else await parse("JSON", len(content), work)
    else:
        images, options = [content] if content else [], {}
    if not images:
        raise NoImagesError("the request has no image; send an image as the body, form fields named images, or JSON")
    if len(images) > max_images:
        raise TooManyImagesError(f"{len(images)} images in one request; at most {max_images} are allowed")
    if request.scope["query_string"]:
        for name, value in request.query_params.multi_items():
            _add(options, name, value)
    return images, parse_options(options)


@lru_cache(maxsize=64)
def _kind(declared: bytes, encoding: bytes) -> str:
    """The media type of a body, by its headers: one of _KINDS, of _UNASKED or empty where the content decides."""
    if len(declared) > MAX_TYPE:
        raise UnsupportedMediaTypeError(f"the content type has {len(declared)} bytes; at most {MAX_TYPE} are allowed")
    whole = declared.decode("latin-1").lower()
    kind = whole.partition(";")[0].strip()
    if kind in _RAW or kind.startswith("image/"):
        kind = RAW_TYPES[-1]
    elif kind and kind not in (*_KINDS, *_UNASKED):
        raise _unsupported(kind, "set Content-Type, for example image/jpeg")
    if kind == "multipart/form-data" and "charset" in whole:
        charset = parse_options_header(whole)[1].get(b"charset", b"utf-8").decode("latin-1")
        if charset not in CHARSETS:
            raise UnsupportedMediaTypeError(
                f"charset {charset[:40]!a} is not supported; expected one of {', '.join(CHARSETS)}, or none"
            )
    if (coding := encoding.decode("latin-1").strip().lower()) not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"content encoding {coding[:60]!a} is not supported; send none")
    return kind


def _unsupported(kind: str, hint: str) -> UnsupportedMediaTypeError:
    return UnsupportedMediaTypeError(
        f"content type {kind[:60]!r} is not supported; {hint}; "
        f"expected one of {', '.join(_KINDS)}, any other image type, or none"
    )


async def read_content(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body; BodyTooLargeError for more than `max_bytes`."""
    declared = next((value for name, value in request.scope["headers"] if name == b"content-length"), b"")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLargeError(f"the body has {int(declared)} bytes; at most {max_bytes} are allowed")
    chunks, size, more = list[bytes](), 0, True
    while more:  # as Request.stream, which costs as much as parsing the head
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLargeError(f"the body has more than {max_bytes} bytes")
    return b"".join(chunks)  # no copy of a single one


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without temporary files, as the body is in memory already; it refuses an unfinished form."""

    spool_max_size = 0  # 0 is "never roll over to disk" for SpooledTemporaryFile

    def __init__(self, content: bytes, headers: Headers, max_images: int) -> None:
        self.pieces = self._slices(content)
        limits = {"max_files": max_images + 1, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD}
        super().__init__(headers, self.pieces, **limits)
        self._whole = False

    async def _slices(self, content: bytes) -> AsyncGenerator[bytes, None]:
        """The body in pieces, so that parsing a large one does not hold up other requests."""
        for start in range(0, len(content), SLICE):
            yield content[start : start + SLICE]
            await asyncio.sleep(0)
        if not self._whole:
            raise MultiPartException("the closing boundary is missing")

    def on_end(self) -> None:
        self._whole = True


async def _multipart(content: bytes, headers: Headers, max_images: int) -> _Parts:
    parser = _InMemoryParser(content, headers, max_images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooManyImagesError(f"more than {max_images} images in one request") from None
        if "Part exceeded" in error.message:
            raise MalformedBodyError(
                f"a form field has more than {MAX_FIELD} bytes; parts that are image files have a filename, "
                'as in filename="cat.jpg"'
            ) from None
        hint = " Let the HTTP client set Content-Type." if "boundary" in error.message else ""
        raise MalformedBodyError(f"not a multipart form: {error.message}{hint}") from None
    except (KeyError, UnicodeError, LookupError):
        raise MalformedBodyError("not a multipart form: no boundary, or an unknown character set") from None
    finally:
        await parser.pieces.aclose()  # it holds the parser, which holds it: neither would be freed
    try:
        return await _parts(form)
    finally:
        await form.close()


async def _parts(form: FormData) -> _Parts:
    images: list[bytes] = []
    options: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in IMAGE_PARTS and isinstance(value, UploadFile):
            images.append(await value.read())
        elif isinstance(value, UploadFile):
            raise MalformedBodyError(f"part {name[:40]!a} is a file; image files go into parts named images")
        elif name in IMAGE_PARTS:
            raise MalformedBodyError(
                f"part {name[:40]!a} has no filename; send the image as a file, as in "
                'Content-Disposition: form-data; name="images"; filename="cat.jpg" (curl: -F images=@cat.jpg)'
            )
        else:
            _add(options, name, value)
    return images, options


def _add(options: dict[str, Any], name: str, value: Any) -> None:
    if name in options:
        raise given_twice(name)
    options[name] = value
