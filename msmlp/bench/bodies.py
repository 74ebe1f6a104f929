"""The requests that `msmlp bench http` sends: one image as it is, many in a form, and pixels as a tensor."""

import io
import json
import uuid
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.bench.generator import request_bytes
from msmlp.bench.images import pick_images
from msmlp.model.preprocess import load_image

Pixels = NDArray[np.uint8]

FORM_IMAGES = 64
HEADER_LENGTH = "Inference-Header-Content-Length"
PICTURES = 64
"""So many different images, where none are given."""
TENSOR_IMAGES = 1024
TENSOR = f"oip-{TENSOR_IMAGES}"
BODIES = ("image", f"multipart-{FORM_IMAGES}", TENSOR)
TENSOR_CONNECTIONS = 2
"""At most: one is read while the other is run, and more would wait for longer than a server lets anyone."""


def thumbnails(size: int) -> list[bytes]:
    """Squares of a photograph as PNG files of the model's size: little to decode, so that the rest can be seen."""
    files = []
    for pixels in pick_images(None, PICTURES, size):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def path_of(body: str) -> str:
    """Where the product takes it."""
    return "/v2/models/msmlp/infer" if body == TENSOR else "/classify"


def requests(url: str, path: str, body: str, files: list[bytes], size: int) -> tuple[bytes, ...]:
    """Whole requests of one of BODIES; a form or a tensor holds the files in turn, repeated where there are fewer."""
    if body == "image":
        return tuple(request_bytes(url, path, file, "application/octet-stream") for file in files)
    if body == TENSOR:
        content, head = tensor_bytes([load_image(file, size) for file in files])
        return (request_bytes(url, path, content, "application/octet-stream", **{HEADER_LENGTH: head}),)
    content, content_type = form_bytes([files[n % len(files)] for n in range(FORM_IMAGES)])
    return (request_bytes(url, path, content, content_type),)


def pixels(pictures: Sequence[Pixels]) -> Pixels:
    """TENSOR_IMAGES pictures in turn, uint8 [n, size, size, 3]."""
    return np.stack([pictures[n % len(pictures)] for n in range(TENSOR_IMAGES)])


def tensor_bytes(pictures: Sequence[Pixels]) -> tuple[bytes, str]:
    """Pixels after the JSON of an Open Inference Protocol request, and the length of that JSON."""
    binary = pixels(pictures)
    head = {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "UINT8",
                "shape": list(binary.shape),
                "parameters": {"binary_data_size": binary.nbytes},
            }
        ],
        "parameters": {"degrade": False},  # the engine it is compared with knows no brown-out
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("class_id", "confidence", "exit")],
    }
    text = json.dumps(head).encode()
    return text + binary.tobytes(), str(len(text))


def exits_of(body: str, answer: bytes) -> Counter[str]:
    """Where the images of an answer left; empty for the reference's, which has no images."""
    if body != TENSOR:
        results = json.loads(answer)["results"]
        return Counter(str(result["exit"]) for result in results if isinstance(results, list))
    head, start = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    for output in head.get("outputs", ()):
        stop = start + output["parameters"]["binary_data_size"]
        if output["name"] == "exit":
            return Counter(map(str, np.frombuffer(answer[start:stop], dtype="<i4").tolist()))
        start = stop
    return Counter()


def form_bytes(files: list[bytes]) -> tuple[bytes, str]:
    """Files as `multipart/form-data`: the body and its content type."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{n}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + file
        + b"\r\n"
        for n, file in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def images_of(body: str) -> int:
    """Images of one request."""
    return {"image": 1, TENSOR: TENSOR_IMAGES}.get(body, FORM_IMAGES)


def connections_of(body: str, connections: tuple[int, ...]) -> tuple[int, ...]:
    """How many connections send it, of those asked for."""
    return tuple(sorted({min(count, TENSOR_CONNECTIONS) for count in connections})) if body == TENSOR else connections


def images_in_flight(bodies: tuple[str, ...], connections: tuple[int, ...]) -> int:
    """The most that closed loops hold at once."""
    return max(images_of(body) * max(connections_of(body, connections)) for body in bodies)
