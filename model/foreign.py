"""What an unreadable file is, in the cases that are sent most often: a word for the error."""

import re

_KINDS = (
    (rb"\Z", "an empty file"),
    (rb"....ftyp(he[iv]|m[is]f1.{,40}hei)", "HEIC"),
    (rb"II\*\0|MM\0\*", "TIFF"),
    (rb"%PDF-", "PDF"),
    (rb"\s*<(\?xml|svg|!doctype svg)", "SVG or other XML"),
    (rb"\s*<(html|!doctype html)", "an HTML page"),
    (
        rb"\s*(data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)",
        "base64 text, which is read from JSON only",
    ),
    (rb"\s*(https?|file)://", "an address; send the image itself"),
)
_PATTERNS = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), name) for pattern, name in _KINDS]


def described(data: bytes) -> str:
    """`but ...` after `not a readable image`; empty for what is unknown."""
    return next((f" but {name}" for pattern, name in _PATTERNS if pattern.match(data[:256])), "")
