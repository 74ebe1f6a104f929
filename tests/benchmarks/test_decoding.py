"""What the benchmark of decoding makes and works out."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.decoding import at_size, bare, candidates, crops, difference, encoded, photographs, reduced, speed
from msmlp.model.preprocess import decode, load_image


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (640, 480), (1920, 1080)])
def test_a_photograph_of_any_size_is_as_detailed_as_it_was(size: tuple[int, int]) -> None:
    photograph = photographs()[0]
    found = np.asarray(at_size(photograph, *size)).astype(int)
    assert found.shape == (size[1], size[0], 3)
    steps = np.abs(np.diff(found, axis=1)).mean()
    assert steps > 0.8 * np.abs(np.diff(photograph.astype(int), axis=1)).mean()


def test_files_are_colour_jpegs_with_halved_chroma_of_different_qualities() -> None:
    image = at_size(photographs()[0], 64, 64)
    files = [encoded(image, "JPEG", number) for number in range(3)]
    assert len({len(file) for file in files}) == 3
    opened = Image.open(io.BytesIO(files[0]))
    assert (opened.mode, opened.layer[0][1:3]) == ("RGB", (2, 2))  # type: ignore[attr-defined]


def test_crops_are_different_pictures_larger_than_the_model() -> None:
    files = list(crops(12, 32))
    assert len({load_image(file, 32).tobytes() for file in files}) == 12
    assert all(32 <= min(decode(file).size) < 256 for file in files)


@pytest.mark.parametrize("size", [(32, 32), (127, 300), (128, 129), (300, 257), (640, 480), (1023, 777), (1920, 1080)])
@pytest.mark.parametrize("near", [32, 224])
def test_the_reduced_scale_is_the_services(size: tuple[int, int], near: int) -> None:
    file = encoded(Image.new("RGB", size), "JPEG", 0)
    assert reduced(size, near) == decode(file, near=near).size


def test_a_row_times_every_decoder_that_can_do_it() -> None:
    decoders = {"service": candidates(32)["service"], "bare": bare}
    same, larger = (speed("PNG", side, side, 32, decoders, rounds=1) for side in (32, 40))
    assert set(same["ms"]) == {"service", "bare"}
    assert set(larger["ms"]) == {"service"}
    assert larger["pictures_per_second"] > 0


def test_the_difference_of_pixels_does_not_wrap() -> None:
    black, white = np.zeros((2, 1, 1, 3), np.uint8), np.zeros((2, 1, 1, 3), np.uint8)
    white[0, 0, 0] = (255, 0, 0)
    assert difference(black, white) == difference(white, black) == {"largest_difference": 255, "mean_difference": 42.5}
