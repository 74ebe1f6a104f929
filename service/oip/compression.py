"""Compressed request bodies."""

import zlib

from msmlp.service.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError

_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""As zlib counts them; deflate is RFC 9110's, which wraps it in zlib's own format."""


def decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body by its Content-Encoding (empty: as it is), never holding more than `max_bytes` of what comes out.

    Raises:
        UnsupportedMediaTypeError: an encoding that is not read here.
        BodyTooLargeError, MalformedBodyError
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaTypeError(
            f"content encoding {encoding[:40]!a} is not read here; allowed: {', '.join(_WINDOW_BITS)}"
        )
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = stream.decompress(content, max_bytes + 1)
    except zlib.error:
        raise MalformedBodyError(f"the body is not {encoding}") from None
    if len(plain) > max_bytes:
        raise BodyTooLargeError(f"the body has more than {max_bytes} bytes once decompressed")
    if not stream.eof or stream.unused_data:
        raise MalformedBodyError(f"the body is not one whole {encoding} stream")
    return plain
