"""Images, encoded or as pixels → one array of the model's size, on the decoder threads."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.errors import ImageError
from msmlp.model.plain import plain_image
from msmlp.model.preprocess import decode_opened, load_image, open_image, to_square
from msmlp.service.errors import BadImagesError

CHUNK = 16
"""Images that one thread decodes in a row; a request's chunks are decoded concurrently."""

SMALL_BYTES, SMALL_PIXELS = 2**14, 128 * 128
"""A single image up to this size is decoded on the event loop: a thread, and the wait for the interpreter, would take
longer than the decoding."""

Source = bytes | NDArray[np.uint8]
"""An encoded image, or its pixels uint8 [H, W, 3]."""
Sources = Sequence[Source] | NDArray[np.uint8]
"""Separate images, or the pixels of all in one array [n, H, W, 3]."""


async def decode_images(sources: Sources, size: int, max_pixels: int, pool: Executor) -> NDArray[np.uint8]:
    """Decode and resize images → uint8 [n, size, size, 3]. An array of that shape passes unchanged.

    Raises:
        BadImagesError: one entry per image that cannot be decoded.
    """
    if isinstance(sources, np.ndarray) and sources.shape[1:] == (size, size, 3):
        return sources
    if len(sources) == 1 and (small := _small(sources[0], size, max_pixels)) is not None:
        return small[None]
    loop = asyncio.get_running_loop()
    chunks = [sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK)]
    parts = await asyncio.gather(*(loop.run_in_executor(pool, _decode, c, size, max_pixels) for c in chunks))
    outcomes = [outcome for part in parts for outcome in part]
    errors = [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ImageError)]
    if errors:
        raise BadImagesError(list(errors))
    return np.stack([outcome for outcome in outcomes if not isinstance(outcome, ImageError)])


def _small(source: Source, size: int, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels of a small image; None for a large one."""
    if isinstance(source, np.ndarray):
        return source if source.shape == (size, size, 3) else None
    if len(source) > SMALL_BYTES:
        return None
    if plain := plain_image(source, size, max_pixels=max_pixels):
        return to_square(plain, size)
    try:
        image = open_image(source, max_pixels=max_pixels)
        if image.width * image.height > SMALL_PIXELS:
            return None
        return to_square(decode_opened(image, near=size), size)
    except ImageError as error:
        raise BadImagesError([(0, error)]) from None


def _decode(chunk: Sources, size: int, max_pixels: int) -> list[NDArray[np.uint8] | ImageError]:
    outcomes: list[NDArray[np.uint8] | ImageError] = []
    for source in chunk:
        try:
            if isinstance(source, bytes):
                outcomes.append(load_image(source, size, max_pixels=max_pixels))
            else:
                outcomes.append(to_square(Image.fromarray(source), size))
        except ImageError as error:
            outcomes.append(error)
    return outcomes
