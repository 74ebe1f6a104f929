"""The pictures that are sent."""

from pathlib import Path

import pytest

from benchmarks.peers.pictures import held_out, photographs
from benchmarks.peers.programs import decode
from msmlp.model.data import load_dataset
from msmlp.model.offline import validation_images
from msmlp.model.weights import load_weights

PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"


def test_photographs_give_different_squares_half_png_half_jpeg() -> None:
    files = photographs(64, 32)
    assert len(set(files)) == 64
    assert [sum(file.startswith(start) for file in files) for start in (PNG, JPEG)] == [32, 32]
    of_the_first = [file.startswith(PNG) for file in files[::4]]
    assert sum(of_the_first) == 8, "of each photograph half"
    assert photographs(64, 32) == files


@pytest.mark.system  # it takes ten seconds or more
def test_held_out_pictures_are_validation_images_to_the_pixel(tiny_weights: Path, digits_folder: Path) -> None:
    weights = load_weights(tiny_weights)
    size = weights.manifest.preprocess.size
    validation = validation_images(weights, load_dataset(digits_folder, size)).pixels
    files = held_out(digits_folder, tiny_weights, 7)
    assert len(set(files)) == 7
    for file in files:
        assert (decode(file, size) == validation).all(axis=(1, 2, 3)).any()
