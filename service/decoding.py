"""Encoded images → one array, on the decoder threads."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from model.errors import ImageError
from model.preprocess import load_image
from service.errors import BadImagesError

CHUNK = 16
"""Images one thread decodes in a row; a request's chunks run beside each other."""


async def decode_images(encoded: Sequence[bytes], size: int, max_pixels: int, pool: Executor) -> NDArray[np.uint8]:
    """Decode all images → uint8 [n, size, size, 3].

    Raises:
        BadImagesError: with one entry for every image that cannot be decoded.
    """
    loop = asyncio.get_running_loop()
    chunks = [encoded[start : start + CHUNK] for start in range(0, len(encoded), CHUNK)]
    parts = await asyncio.gather(*(loop.run_in_executor(pool, _decode, c, size, max_pixels) for c in chunks))
    outcomes = [outcome for part in parts for outcome in part]
    errors = [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ImageError)]
    if errors:
        raise BadImagesError(list(errors))
    return np.stack([outcome for outcome in outcomes if not isinstance(outcome, ImageError)])


def _decode(chunk: Sequence[bytes], size: int, max_pixels: int) -> list[NDArray[np.uint8] | ImageError]:
    outcomes: list[NDArray[np.uint8] | ImageError] = []
    for data in chunk:
        try:
            outcomes.append(load_image(data, size, max_pixels=max_pixels))
        except ImageError as error:
            outcomes.append(error)
    return outcomes
