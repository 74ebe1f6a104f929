"""What is sent instead of an image is named."""

import base64
import io

import pytest
from PIL import Image

from msmlp.model.errors import UndecodableImageError
from msmlp.model.foreign import described
from msmlp.model.preprocess import decode

SMALL = Image.new("RGB", (9, 9))


def tiff() -> bytes:
    stream = io.BytesIO()
    SMALL.save(stream, "TIFF")
    return stream.getvalue()


def base64_of(kind: str) -> bytes:
    stream = io.BytesIO()
    SMALL.save(stream, kind)
    return base64.encodebytes(stream.getvalue())


SENT = {
    "an empty file": b"",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "HEIC ": b"\0\0\0\x24ftypmif1\0\0\0\0mif1heicMiHEmiafMiHB" + bytes(99),
    "TIFF": tiff(),
    "PDF": b"%PDF-1.7\n",
    "SVG or other XML": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "an HTML page": b"\n<!DOCTYPE html><html><head>",
    "base64 text": base64_of("JPEG"),
    "base64 text,": base64_of("PNG"),
    "base64 text, which": base64_of("WEBP"),
    "base64 text, which is": b"data:image/png;base64," + base64_of("PNG"),
    "an address": b"https://example.com/cat.jpg",
}


@pytest.mark.parametrize("name", [name for name in SENT if name != "HEIC "])
def test_the_error_names_what_was_sent(name: str) -> None:
    with pytest.raises(UndecodableImageError, match=rf"^not a readable image but {name}.*; formats: PNG, JPEG"):
        decode(SENT[name])


def test_heic_under_its_other_name() -> None:
    assert described(SENT["HEIC "]) == " but HEIC"
    with pytest.raises(UndecodableImageError):
        decode(SENT["HEIC "])


@pytest.mark.parametrize("data", [b"x", b"GIF?", b"\0" * 300, b"notes about cats", b"\xff" * 9])
def test_of_anything_else_nothing_is_said(data: bytes) -> None:
    assert described(data) == ""
    with pytest.raises(UndecodableImageError, match=r"^not a readable image; formats: PNG, JPEG"):
        decode(data)
