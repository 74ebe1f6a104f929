"""What benchmarks send: images of a data set or squares of a photograph, and whole HTTP requests made of them."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.bench.generator import request_bytes
from msmlp.client.transport import key_header
from msmlp.model.errors import DataError
from msmlp.model.preprocess import load_image
from msmlp.model.views import Target, views_of

if TYPE_CHECKING:
    from msmlp.model.data import Dataset

FORM_IMAGES = 64
TENSOR_IMAGES = 1024
FORM, TENSOR = f"multipart-{FORM_IMAGES}", f"oip-{TENSOR_IMAGES}"
IMAGES_OF = {"image": 1, FORM: FORM_IMAGES, TENSOR: TENSOR_IMAGES}
"""Images per request, by the kind of body."""
PICTURES = 64
"""Different images, where none are given."""


def pick_images(data: "Dataset | None", count: int, target: Target) -> NDArray[np.uint8]:
    """`count` images as the target's pixels, repeated if there are fewer.

    Without `data` they are squares of one photograph: real pixels, but not the classes trained on, so exits fire
    differently than they would on the data.
    """
    if data is None:
        views = views_of(target)
        squares = _squares_of_the_cat(count, max(view.size for view in views.views))
        return np.stack([views.pixels(Image.fromarray(square)) for square in squares])
    test = data.test
    if test is None:
        raise DataError(f"{data.source} has no test split")
    return test.pixels[np.arange(count) % len(test.pixels)]


def _squares_of_the_cat(count: int, size: int) -> NDArray[np.uint8]:
    with (files("msmlp.service") / "ui" / "cat.jpg").open("rb") as file, Image.open(file) as photograph:
        return squares(photograph.convert("RGB"), count, size)


def squares(photograph: Image.Image, count: int, size: int) -> NDArray[np.uint8]:
    """Squares of any place and extent in an RGB photograph, the same ones each time: uint8 [count, size, size, 3]."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        side = int(rng.integers(size, min(photograph.size)))
        x, y = (int(rng.integers(0, full - side + 1)) for full in photograph.size)
        found.append(np.asarray(photograph.resize((size, size), box=(x, y, x + side, y + side)), dtype=np.uint8))
    return np.stack(found)


def thumbnails(size: int) -> list[bytes]:
    """Squares of a photograph as PNG files of the model's size: cheap to decode, so that the rest shows."""
    files = []
    for pixels in pick_images(None, PICTURES, size):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def requests(url: str, body: str, files: Sequence[bytes], size: int) -> tuple[bytes, ...]:
    """Whole requests of one kind of body; a form or a tensor holds the files in turn. The key is the environment's."""
    key = key_header()
    if body == "image":
        return tuple(request_bytes(url, "/classify", file, "application/octet-stream", **key) for file in files)
    if body == FORM:
        content, content_type = form_bytes([files[n % len(files)] for n in range(FORM_IMAGES)])
        return (request_bytes(url, "/classify", content, content_type, **key),)
    content, head_length = _tensor_bytes([load_image(file, size) for file in files])
    headers = {"Inference-Header-Content-Length": str(head_length), **key}
    return (request_bytes(url, "/v2/models/msmlp/infer", content, "application/octet-stream", **headers),)


def form_bytes(files: Sequence[bytes]) -> tuple[bytes, str]:
    """Files as `multipart/form-data`: the body and its content type."""
    form = httpx.Request("POST", "http://service", files=[("images", (f"{n}", file)) for n, file in enumerate(files)])
    return form.read(), form.headers["Content-Type"]


def _tensor_bytes(pictures: Sequence[NDArray[np.uint8]]) -> tuple[bytes, int]:
    """An Open Inference Protocol request: its JSON and then the pixels, and the length of the JSON."""
    pixels = np.stack([pictures[n % len(pictures)] for n in range(TENSOR_IMAGES)])
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape}
    binary = {"binary_data": True}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}],
        "parameters": {"degrade": False},  # brown-out would change how much work an image is
        "outputs": [*({"name": name, "parameters": binary} for name in ("class_id", "confidence")), {"name": "exit"}],
    }
    text = json.dumps(head).encode()
    return text + pixels.tobytes(), len(text)


def exits_of(body: str, answer: bytes) -> Counter[str]:
    document, _ = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    if body != TENSOR:
        return Counter(str(result["exit"]) for result in document["results"])
    return Counter(str(exit) for output in document["outputs"] for exit in output.get("data", ()))
