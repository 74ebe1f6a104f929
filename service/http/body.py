"""Request bodies → encoded images and raw options: raw bytes, multipart forms, JSON with base64."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from msmlp.model.errors import OptionError
from msmlp.service.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    NoImagesError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)

RAW_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "application/octet-stream")
SLICE = 2**16
IMAGE_PARTS = ("images", "image")


@dataclass
class Body:
    """What a request carried: encoded images, and options by name."""

    images: list[bytes]
    options: dict[str, Any] = field(default_factory=dict)


async def read_body(request: Request, *, max_bytes: int, max_images: int) -> Body:
    """Read and take apart a body, never holding more than `max_bytes` of it.

    Raises:
        BodyTooLargeError, TooManyImagesError, UnsupportedMediaTypeError, MalformedBodyError, NoImagesError, OptionError
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (*RAW_TYPES, "multipart/form-data", "application/json"):
        allowed = ", ".join((*RAW_TYPES, "multipart/form-data", "application/json"))
        raise UnsupportedMediaTypeError(f"content type {kind[:60] or '(none)'!r} is not read here; allowed: {allowed}")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"content encoding {encoding[:60]!a} is not read here; send the body as it is")
    content = await read_content(request, max_bytes)
    if kind == "multipart/form-data":
        body = await _multipart(content, request.headers, max_images)
    elif kind == "application/json":
        body = await asyncio.to_thread(_json, content)
    else:
        body = Body([content] if content else [])
    if not body.images:
        raise NoImagesError("the request holds no image")
    if len(body.images) > max_images:
        raise TooManyImagesError(f"{len(body.images)} images in one request, at most {max_images} are allowed")
    for name, value in request.query_params.multi_items():
        if name in body.options:
            raise OptionError(ascii(name[:40]), "is given twice")
        body.options[name] = value
    return body


async def read_content(request: Request, max_bytes: int) -> bytes:
    """A body as it came; BodyTooLargeError for more than `max_bytes`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLargeError(f"the body has {declared} bytes, at most {max_bytes} are allowed")
    chunks, size = list[bytes](), 0
    async for chunk in request.stream():
        if chunk:
            chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLargeError(f"the body has more than {max_bytes} bytes")
    return b"".join(chunks)  # no copy of a single one


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without its temporary files (the body is bounded and in memory already), that refuses a form
    without its end."""

    spool_max_size = 0  # 0 is "never roll over to disk" for SpooledTemporaryFile

    def __init__(self, content: bytes, headers: Headers, max_images: int) -> None:
        super().__init__(headers, self._slices(content), max_files=max_images + 1, max_fields=64)
        self._whole = False

    async def _slices(self, content: bytes) -> AsyncGenerator[bytes, None]:
        """The body piece by piece, so that parsing a large one lets other requests have their turn."""
        for start in range(0, len(content), SLICE):
            yield content[start : start + SLICE]
            await asyncio.sleep(0)
        if not self._whole:
            raise MultiPartException("the closing boundary is missing")

    def on_end(self) -> None:
        """The closing boundary was read."""
        self._whole = True


async def _multipart(content: bytes, headers: Headers, max_images: int) -> Body:
    try:
        form = await _InMemoryParser(content, headers, max_images).parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooManyImagesError(f"more than {max_images} images in one request") from None
        raise MalformedBodyError(f"not a multipart form: {error.message}") from None
    except (KeyError, UnicodeError, LookupError):
        raise MalformedBodyError("not a multipart form: no boundary, or an unknown character set") from None
    try:
        return await _parts(form)
    finally:
        await form.close()


async def _parts(form: FormData) -> Body:
    body = Body([])
    for name, value in form.multi_items():
        if name in IMAGE_PARTS and isinstance(value, UploadFile):
            body.images.append(await value.read())
        elif isinstance(value, UploadFile) or name in IMAGE_PARTS:
            raise MalformedBodyError(f"image files go into parts called images, and only they: {name[:40]!a}")
        elif name in body.options:
            raise OptionError(ascii(name[:40]), "is given twice")
        else:
            body.options[name] = value
    return body


def _json(content: bytes) -> Body:
    try:
        document = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise MalformedBodyError("the body is not JSON") from None
    encoded = document.pop("images", []) if isinstance(document, dict) else None
    if not isinstance(encoded, list) or not all(isinstance(item, str) for item in encoded):
        raise MalformedBodyError('the body must be {"images": ["<base64>", ...], ...options}')
    return Body([_base64(index, item) for index, item in enumerate(encoded)], document)


def _base64(index: int, text: str) -> bytes:
    """Standard base64, as `base64` wraps it into lines or a browser puts it into a data: URL."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not head.endswith(";base64") or not comma:
            raise MalformedBodyError(f"images[{index}] is a data: URL without ;base64,")
    try:
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are ones
        raise MalformedBodyError(
            f"images[{index}] is not base64; allowed: the standard alphabet, padded, or a data: URL of it"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when it names anything twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise OptionError(ascii(name[:40]), "is given twice")
        found[name] = value
    return found
