"""Every format, depth and orientation of the corpus in tests/pictures shows what it should."""

import numpy as np
import pytest

from msmlp.model.preprocess import FORMATS, load_image
from msmlp.service.decoding.pictures import read_header
from tests.pictures import MADE, PICTURES, Shown, seen

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of much that is odd in a file


def test_the_corpus_has_every_format() -> None:
    assert set(MADE) == set(FORMATS)


@pytest.mark.parametrize("shown", PICTURES.values(), ids=PICTURES)
def test_a_picture_shows_what_it_should(shown: Shown) -> None:
    found = seen(shown.data)
    assert found.shape == shown.pixels.shape
    off = np.abs(found - shown.pixels.astype(float))
    if shown.loss:
        assert off.mean() <= shown.loss
    else:
        assert off.max() <= 0.5  # alpha is rounded


@pytest.mark.parametrize("shown", PICTURES.values(), ids=PICTURES)
def test_the_service_sees_the_same(shown: Shown) -> None:
    assert np.array_equal(read_header(shown.data, 8, 10_000).decode(), load_image(shown.data, 8))
