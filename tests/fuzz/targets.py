"""What strangers' bytes reach first, as functions of bytes: each reads them, or refuses them with an error of ours.

`python -m tests.fuzz TARGET` looks for bytes with which it does anything else. `tests/fuzz/corpus/TARGET` has some of
each kind, and all that were found.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from msmlp.model.errors import ImageError, MsmlpError
from msmlp.model.preprocess import load_image
from msmlp.service.decoding.pictures import read_header
from msmlp.service.errors import problem
from msmlp.service.grpc import messages
from msmlp.service.grpc.wire import check_message, check_parts
from msmlp.service.http.json_body import read_json
from msmlp.service.oip.request import Inference, Limits, decompress, read_inference
from msmlp.service.options import parse_options

CORPUS = Path(__file__).parent / "corpus"
SIZE, MAX_PIXELS, MAX_IMAGES = 8, 2**16, 4
LIMITS = Limits(MAX_IMAGES, MAX_PIXELS)
MOST_WORDS = 1000


def decoder(data: bytes) -> None:
    """A picture: the two ways to its pixels agree."""
    try:
        found = read_header(data, SIZE, MAX_PIXELS).decode()
    except ImageError as error:
        _check_words(error)
        found = None
    try:
        whole = load_image(data, SIZE, max_pixels=MAX_PIXELS)
    except ImageError:
        assert found is None, "it can be decoded in two steps only"
        return
    assert found is not None, "it can be decoded in one step only"
    assert found.shape == (SIZE, SIZE, 3)
    assert np.array_equal(found, whole)


def options(data: bytes) -> None:
    """A query."""
    text = data.decode("latin-1")
    _refused(lambda: parse_options(dict(parse_qsl(text, keep_blank_values=True))))


def json_body(data: bytes) -> None:
    def read() -> None:
        images, raw = read_json(data, MAX_IMAGES)
        assert len(images) <= MAX_IMAGES
        parse_options(raw)

    _refused(read)


def tensors(data: bytes) -> None:
    """A body under /v2: one byte says how much of it is JSON (255: all of it), then it follows."""
    length = None if data[:1] == b"\xff" else str(4 * int.from_bytes(data[:1], "big"))
    _refused(lambda: _check_inference(read_inference(data[1:], length, LIMITS)))


def message(data: bytes) -> None:
    """A ModelInferRequest over gRPC."""

    def read() -> None:
        check_parts(data)
        check_message(data, 2**16)
        _check_inference(messages.read_inference(messages.parse(messages.ModelInferRequest, data), LIMITS))

    _refused(read)


def compressed(data: bytes) -> None:
    """A body in gzip, or in deflate by its first byte."""

    def read() -> None:
        encoding = "deflate" if data[:1] == b"d" else "gzip"
        assert len(decompress(data[1:], encoding, 5000)) <= 5000

    _refused(read)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (decoder, options, json_body, tensors, message, compressed)
}


def _check_inference(read: Inference) -> None:
    assert 0 < len(read.images) <= MAX_IMAGES
    if isinstance(read.images, np.ndarray):
        assert read.images.dtype == np.uint8
        assert read.images.ndim == 4
        assert read.images.size == 3 * np.prod(read.images.shape[:3])
    else:
        assert all(isinstance(image, bytes) for image in read.images)


def _refused(read: Callable[[], object]) -> None:
    try:
        read()
    except MsmlpError as error:
        _check_words(error)


def _check_words(error: MsmlpError) -> None:
    """It is the client's fault, and says so in a line."""
    status, document = problem(error, "id")
    assert 400 <= status < 500
    assert len(document["detail"]) <= MOST_WORDS
    assert "\n" not in document["detail"]
