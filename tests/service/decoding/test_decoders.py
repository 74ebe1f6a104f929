import asyncio
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import uvloop
from PIL import Image

from msmlp.model.errors import ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import load_image
from msmlp.service.decoding.decoders import HEADERS, Check, Decoders, Sources
from msmlp.service.errors import BadImagesError, OverloadedError, TooManyPixelsError
from tests.fakes import PATIENCE_SECONDS
from tests.servers import encoded


@contextmanager
def decoders(
    threads: int = 2,
    *,
    max_pixels: int = 1_000_000,
    max_request_pixels: int = 10**9,
    took: list[str] | None = None,
) -> Iterator[Decoders]:
    kinds = [] if took is None else took
    made = Decoders(
        threads,
        max_pixels=max_pixels,
        max_request_pixels=max_request_pixels,
        observe=lambda pictures: kinds.extend(kind for kind, _ in pictures),
    )
    yield made
    made.shutdown()
    assert made.backlog() == 0


def decode(images: Sources, *, size: int = 8, max_pixels: int = 1_000_000) -> np.ndarray:
    async def main() -> np.ndarray:
        with decoders(max_pixels=max_pixels) as made:
            found = made.at_once(images, size)
            return await made.decode(images, size) if found is None else found

    return asyncio.run(main())


def noise(count: int, size: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def black(side: int) -> bytes:
    """A file that is small whatever it decodes to."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


class Blocked:
    """Holds decoder threads until `open`."""

    def __init__(self, made: Decoders, threads: int = 1) -> None:
        self._may_go = threading.Event()
        for _ in range(threads):
            made.threads.submit(self._may_go.wait, PATIENCE_SECONDS)

    def open(self) -> None:
        self._may_go.set()


def test_images_keep_their_order() -> None:
    pictures = noise(3 * HEADERS + 1)
    assert (decode([encoded(picture) for picture in pictures]) == np.stack(pictures)).all()


def test_it_is_the_models_own_preprocessing(cat_photo: bytes) -> None:
    decoded = decode([cat_photo], size=32)
    assert (decoded[0] == load_image(cat_photo, 32)).all()


def test_every_bad_image_is_named_by_its_place() -> None:
    good, large = encoded(noise(1)[0]), encoded(noise(1, size=128)[0])
    images = [good] * (HEADERS + 5)
    images[1], images[HEADERS + 2] = b"<!doctype html>", large
    with pytest.raises(BadImagesError) as caught:
        decode(images, max_pixels=10_000)
    assert [(index, type(error)) for index, error in caught.value.errors] == [
        (1, UndecodableImageError),
        (HEADERS + 2, ImageTooLargeError),
    ]
    assert str(caught.value).startswith("2 images cannot be classified; the first: not a readable image")


def test_errors_that_wait_for_those_of_other_pictures_hold_nothing_of_theirs() -> None:
    picture = encoded(noise(1, 64)[0])
    with pytest.raises(BadImagesError) as refused:
        decode([b"", picture[:60], picture[:-2000]])
    assert len(refused.value.errors) == 3
    for _, error in refused.value.errors:
        assert error.__traceback__ is None
        assert error.__context__ is None or error.__context__.__traceback__ is None


def test_damaged_pixels_are_named_too() -> None:
    good, cut = encoded(noise(1, size=50)[0]), encoded(noise(1, size=50)[0])[:3000]
    with pytest.raises(BadImagesError) as caught:
        decode([good, cut, good, cut])
    assert [index for index, _ in caught.value.errors] == [1, 3]


@pytest.mark.parametrize("image", [encoded(noise(1, size=200)[0]), black(900)], ids=["many bytes", "many pixels"])
def test_decoding_what_is_large_leaves_the_event_loop_free(image: bytes) -> None:
    """While the decoder thread is busy, the loop answers: the thread waits for what only the loop can do."""

    async def main() -> None:
        with decoders(1) as made:
            blocked = Blocked(made)
            assert made.at_once([image], 8) is None
            task = asyncio.create_task(made.decode([image], 8))
            await asyncio.sleep(0)
            assert not task.done()
            blocked.open()
            assert (await task).shape == (1, 8, 8, 3)

    asyncio.run(main())


def test_one_small_image_waits_for_no_thread(cat_photo: bytes) -> None:
    with decoders(max_pixels=10_000) as made:
        for image in (encoded(noise(1)[0]), encoded(load_image(cat_photo, 48)), encoded(noise(1, 48)[0], "WEBP")):
            decoded = made.at_once([image], 32)
            assert decoded is not None
            assert (decoded[0] == load_image(image, 32)).all()
        for image, error in ((b"no picture", UndecodableImageError), (black(101), ImageTooLargeError)):
            with pytest.raises(BadImagesError) as caught:
                made.at_once([image], 32)
            assert [(index, type(each)) for index, each in caught.value.errors] == [(0, error)]


def test_a_small_file_of_much_work_is_for_a_thread() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (128, 128)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    scans = data[:last] + data[last:-2] * 200 + data[-2:]
    assert len(scans) < 2**14
    with decoders() as made:
        assert made.at_once([data], 64) is not None
        assert made.at_once([scans], 64) is None


def test_pixels_are_brought_to_size_as_their_file_would_be(cat_photo: bytes) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mixed = decode([pixels, cat_photo, encoded(pixels)], size=32)
    assert (mixed[0] == mixed[2]).all()
    assert (mixed[1] == load_image(cat_photo, 32)).all()


def test_pixels_of_the_right_size_pass_as_they_are() -> None:
    stack = np.stack(noise(3))
    assert decode(stack) is stack
    assert (decode(list(stack)) == stack).all()


def test_the_pixels_of_a_request_are_limited_before_any_is_decoded() -> None:
    async def main() -> None:
        took: list[str] = []
        with decoders(max_request_pixels=3_000_000, took=took) as made:
            with pytest.raises(TooManyPixelsError, match=r"4000000 pixels.* is 3000000 \(--max-request-pixels\)"):
                await made.decode([black(1000)] * 4, 8)
            assert took == []
            assert (await made.decode([black(1000)] * 3, 8)).shape == (3, 8, 8, 3)
            assert took == ["PNG"] * 3

    asyncio.run(main())


def test_one_image_is_held_to_the_limit_of_a_request() -> None:
    async def main() -> None:
        with decoders(max_request_pixels=1000) as made:
            for side in (32, 40):
                assert made.at_once([encoded(noise(1, side)[0])], 32) is None
                with pytest.raises(TooManyPixelsError):
                    await made.decode([encoded(noise(1, side)[0])], 32)

    asyncio.run(main())


def test_a_request_whose_decoding_would_take_too_long_is_refused_before_it() -> None:
    async def main() -> None:
        took: list[str] = []
        predicted: list[float] = []

        def refuse(seconds: float, own: float) -> None:
            predicted.append(seconds)
            assert own <= seconds, "the rest of it is others'"
            raise OverloadedError("later")

        with decoders(2, took=took) as made:
            for number in (1, 2, 20):
                with pytest.raises(OverloadedError):
                    await made.decode([black(1000)] * number, 8, check=refuse)
            assert took == []
            assert predicted[1] == pytest.approx(predicted[0], rel=0.05), "two threads"
            assert predicted[2] == pytest.approx(10 * predicted[0], rel=0.05)

    asyncio.run(main())


def test_what_is_decoded_already_counts_as_far_as_it_goes_first() -> None:
    async def main() -> None:
        predicted: dict[int, float] = {}
        with decoders(1) as made:
            blocked = Blocked(made)
            requests = {number: [black(1000 if number < 20 else 100)] * number for number in (10, 1, 20)}

            def keep(number: int) -> Check:
                return lambda seconds, _: predicted.__setitem__(number, seconds)

            tasks = [
                asyncio.create_task(made.decode(images, 8, check=keep(number))) for number, images in requests.items()
            ]
            await asyncio.sleep(0)
            assert made.backlog() > 0
            blocked.open()
            await asyncio.gather(*tasks)
        alone = predicted[10] / 10
        assert alone < predicted[1] < 3 * alone, "the longer one only has its first turn before"
        assert predicted[20] < 2 * alone, "and no turn before these"

    asyncio.run(main())


def test_a_request_whose_caller_has_left_is_decoded_no_further() -> None:
    async def main() -> None:
        took: list[str] = []
        with decoders(1, took=took) as made:
            blocked = Blocked(made)
            left = asyncio.create_task(made.decode([black(1000)] * 50, 8))
            stays = asyncio.create_task(made.decode([encoded(noise(1, 50)[0], "BMP")] * 2, 8))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            blocked.open()
            assert (await stays).shape == (2, 8, 8, 3)
            assert took == ["BMP"] * 2

    asyncio.run(main())


def test_a_caller_may_leave_in_the_middle() -> None:
    async def main() -> None:
        took: list[str] = []
        with decoders(1, took=took) as made:
            planned = threading.Event()
            task = asyncio.create_task(made.decode([black(1000)] * 500, 8, check=lambda *_: planned.set()))
            await asyncio.to_thread(planned.wait, PATIENCE_SECONDS)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(took) < 500

    asyncio.run(main())


def test_nothing_is_decoded_after_the_deadline() -> None:
    async def main() -> None:
        took: list[str] = []
        with decoders(1, took=took) as made:
            white = [encoded(np.full((50, 50, 3), 255, np.uint8))] * 20
            assert not (await made.decode(white, 8, deadline=time.monotonic())).any()
            assert took == []
            assert (await made.decode(white, 8, deadline=math.inf)).all()

    asyncio.run(main())


def test_a_deadline_passes_while_others_have_their_turns() -> None:
    async def main() -> None:
        with decoders(1) as made:
            blocked = Blocked(made)
            assert not (await made.decode([black(1000)], 8, deadline=time.monotonic() + 0.1)).any()
            blocked.open()

    asyncio.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_not_decoded_is_given_up_after_the_deadline_not_before(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        with decoders(1) as made:
            blocked = Blocked(made)
            for tenths in range(20):
                deadline = time.monotonic() + 0.005 + tenths / 10_000
                await made.decode([black(1000)], 8, deadline=deadline)
                assert time.monotonic() >= deadline
            blocked.open()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def test_a_fault_in_one_request_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def broken(*_: float) -> None:
            raise ZeroDivisionError

        with decoders(1) as made:
            with pytest.raises(ZeroDivisionError):
                await made.decode([black(1000)], 8, check=broken)
            assert (await made.decode([black(1000)], 8)).shape == (1, 8, 8, 3)

    asyncio.run(main())


def test_once_started_it_needs_no_new_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_to_be_had(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with decoders(4) as made:
            made.start()
            monkeypatch.setattr(threading.Thread, "start", none_to_be_had)
            assert (await made.decode([black(300)] * 30, 8)).shape == (30, 8, 8, 3)

    asyncio.run(main())


def test_small_pictures_of_others_are_answered_first() -> None:
    async def main() -> None:
        with decoders(1) as made:
            bomb = asyncio.create_task(made.decode([black(1000)] * 200, 8))
            await asyncio.sleep(0)
            for _ in range(5):
                assert (await made.decode([black(100)] * 2, 8)).shape == (2, 8, 8, 3)
            assert not bomb.done()
            bomb.cancel()

    asyncio.run(main())
