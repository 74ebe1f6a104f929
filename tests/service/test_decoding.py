import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from msmlp.model.errors import ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import load_image
from msmlp.service.decoding import CHUNK, Sources, decode_images
from msmlp.service.errors import BadImagesError
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
    assert str(caught.value).startswith("2 images cannot be classified; the first: not a readable image")


def black(side: int) -> bytes:
    """A file that is small whatever it decodes to."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("image", [encoded(noise(1, size=200)[0]), black(1000)], ids=["many bytes", "many pixels"])
def test_decoding_what_is_large_leaves_the_event_loop_free(image: bytes) -> None:
    """While a decoder thread is busy, the loop answers: the thread waits for what only the loop can do."""
    loop_ran = threading.Event()
    pool = ThreadPoolExecutor(1)
    blocker = pool.submit(loop_ran.wait, 60)

    async def main() -> np.ndarray:
        task = asyncio.create_task(decode_images([image], 8, 1_000_000, pool))
        await asyncio.sleep(0)
        assert not task.done()
        loop_ran.set()
        return await task

    assert asyncio.run(main()).shape == (1, 8, 8, 3)
    assert blocker.result()
    pool.shutdown()


def test_one_small_image_waits_for_no_thread(cat_photo: bytes) -> None:
    goes_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(goes_on.wait, 60)
        try:
            for image in (encoded(noise(1)[0]), encoded(load_image(cat_photo, 48))):
                decoded = asyncio.run(decode_images([image], 32, 1_000_000, pool))
                assert (decoded[0] == load_image(image, 32)).all()
            for image, error in ((b"no picture", UndecodableImageError), (black(101), ImageTooLargeError)):
                with pytest.raises(BadImagesError) as caught:
                    asyncio.run(decode_images([image], 32, 10_000, pool))
                assert [(index, type(each)) for index, each in caught.value.errors] == [(0, error)]
        finally:
            goes_on.set()


def test_pixels_are_brought_to_size_as_their_file_would_be(cat_photo: bytes) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mixed = decode([pixels, cat_photo, encoded(pixels)], size=32, max_pixels=1_000_000)
    assert (mixed[0] == mixed[2]).all()
    assert (mixed[1] == load_image(cat_photo, 32)).all()


def test_pixels_of_the_right_size_pass_as_they_are() -> None:
    stack = np.stack(noise(3))
    assert decode(stack) is stack
    assert (decode(list(stack)) == stack).all()
