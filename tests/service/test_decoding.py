import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.errors import ImageTooLargeError, UndecodableImageError
from model.preprocess import load_image
from service.decoding import CHUNK, Sources, decode_images
from service.errors import BadImagesError
from tests.servers import encoded


def decode(images: Sources, *, size: int = 8, max_pixels: int = 10_000) -> np.ndarray:
    with ThreadPoolExecutor(2) as pool:
        return asyncio.run(decode_images(images, size, max_pixels, pool))


def noise(count: int, size: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def test_images_keep_their_order_over_many_chunks() -> None:
    pictures = noise(3 * CHUNK + 1)
    assert (decode([encoded(picture) for picture in pictures]) == np.stack(pictures)).all()


def test_it_is_the_models_own_preprocessing(cat_photo: bytes) -> None:
    decoded = decode([cat_photo], size=32, max_pixels=1_000_000)
    assert (decoded[0] == load_image(cat_photo, 32)).all()


def test_every_bad_image_is_named_by_its_place() -> None:
    good, large = encoded(noise(1)[0]), encoded(noise(1, size=128)[0])
    images = [good] * (CHUNK + 5)
    images[1], images[CHUNK + 2] = b"<!doctype html>", large
    with pytest.raises(BadImagesError) as caught:
        decode(images)
    assert [(index, type(error)) for index, error in caught.value.errors] == [
        (1, UndecodableImageError),
        (CHUNK + 2, ImageTooLargeError),
    ]
    assert str(caught.value).startswith("2 images, the first: not a readable image")


def test_decoding_leaves_the_event_loop_free() -> None:
    """While a decoder thread is busy, the loop answers: the thread waits for what only the loop can do."""
    loop_ran = threading.Event()
    pool = ThreadPoolExecutor(1)
    blocker = pool.submit(loop_ran.wait, 60)

    async def main() -> np.ndarray:
        task = asyncio.create_task(decode_images([encoded(noise(1)[0])], 8, 10_000, pool))
        await asyncio.sleep(0)
        loop_ran.set()
        return await task

    assert asyncio.run(main()).shape == (1, 8, 8, 3)
    assert blocker.result()
    pool.shutdown()


def test_pixels_are_brought_to_size_as_their_file_would_be(cat_photo: bytes) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mixed = decode([pixels, cat_photo, encoded(pixels)], size=32, max_pixels=1_000_000)
    assert (mixed[0] == mixed[2]).all()
    assert (mixed[1] == load_image(cat_photo, 32)).all()


def test_pixels_of_the_right_size_pass_as_they_are() -> None:
    stack = np.stack(noise(3))
    assert decode(stack) is stack
    assert (decode(list(stack)) == stack).all()
