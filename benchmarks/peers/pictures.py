"""What is sent: many different pictures of 32x32, as encoded files."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.bench.images import squares
from msmlp.model.data import load_dataset
from msmlp.model.offline import validation_images
from msmlp.model.weights import load_weights

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket")
"""Of scikit-image."""
SQUARES, VALIDATION = 512, 600


def photographs(count: int, size: int) -> list[bytes]:
    """Squares of the photographs in turn, half of each as PNG files and half as JPEG."""
    import skimage.data

    each = -(-count // len(PHOTOGRAPHS))
    found = [squares(Image.fromarray(getattr(skimage.data, name)()), each, size) for name in PHOTOGRAPHS]
    mixed = np.stack(found, axis=1).reshape(-1, size, size, 3)[:count]
    return [_file(pixels, "JPEG" if n // len(PHOTOGRAPHS) % 2 else "PNG") for n, pixels in enumerate(mixed)]


def held_out(data: Path, weights: Path, count: int) -> list[bytes]:
    """PNG files of images that the training of these weights held out, spread over all of them.

    The test images are for reports on accuracy alone.

    Raises:
        DataError: the data is not that of the training.
    """
    loaded = load_weights(weights)
    found = validation_images(loaded, load_dataset(data, loaded.manifest.preprocess.size))
    places = np.random.default_rng(0).permutation(len(found))[:count]
    return [_file(found.pixels[place], "PNG") for place in places]


def _file(pixels: NDArray[np.uint8], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=90)
    return stream.getvalue()
