"""The requests that `msmlp bench http` sends: one image as it is, and many in a form."""

import io
import uuid

from PIL import Image

from msmlp.bench.generator import request_bytes
from msmlp.bench.images import pick_images

FORM_IMAGES = 64
PICTURES = 64
"""So many different images, where none are given."""
BODIES = ("image", f"multipart-{FORM_IMAGES}")


def thumbnails(size: int) -> list[bytes]:
    """Squares of a photograph as PNG files of the model's size: little to decode, so that the rest can be seen."""
    files = []
    for pixels in pick_images(None, PICTURES, size):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def requests(url: str, path: str, body: str, files: list[bytes]) -> tuple[bytes, ...]:
    """Whole requests of one of BODIES; a form holds the files in turn, repeated where there are fewer."""
    if body == "image":
        return tuple(request_bytes(url, path, file, "application/octet-stream") for file in files)
    content, content_type = form_bytes([files[n % len(files)] for n in range(FORM_IMAGES)])
    return (request_bytes(url, path, content, content_type),)


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
    return 1 if body == "image" else FORM_IMAGES
