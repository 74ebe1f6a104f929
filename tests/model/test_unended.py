"""A JPEG without its last bytes: shown if the picture is whole, refused if it is not."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msmlp.model.errors import UndecodableImageError
from msmlp.model.preprocess import decode, load_image
from msmlp.service.decoding.pictures import read_header

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def jpeg(mode: str = "RGB", pixels: Any = NOISE, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


KINDS = {
    "baseline": jpeg(),
    "grey": jpeg("L"),
    "CMYK": jpeg("CMYK"),
    "full colour": jpeg(subsampling=0),
    "progressive": jpeg(progressive=True),
    "restarts": jpeg(restart_marker_blocks=1),
    "grey, restarts": jpeg("L", restart_marker_blocks=2),
}


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_a_whole_picture_without_its_end_is_shown(data: bytes, missing: int) -> None:
    assert np.array_equal(np.asarray(decode(data[:-missing])), np.asarray(decode(data)))
    assert (read_header(data[:-missing], 32, 10_000).decode() == load_image(data, 32)).all()


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_a_picture_that_ends_too_early_is_refused_wherever_it_ends(data: bytes) -> None:
    for end in range(data.rindex(b"\xff\xda") + 12, len(data) - 2, 7 if len(data) > 2500 else 3):
        with pytest.raises(UndecodableImageError):
            decode(data[:end])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "data", [KINDS["progressive"], jpeg("L", progressive=True), jpeg(progressive=True, subsampling=0)]
)
def test_a_picture_that_lacks_whole_scans_is_refused(data: bytes) -> None:
    parts = [found.start() for found in re.finditer(rb"\xff[\xc4\xda]", data)]
    first = data.index(b"\xff\xda")
    for end in [part for part in parts if part > first]:
        with pytest.raises(UndecodableImageError):
            decode(data[:end])
        decode(data[:end] + b"\xff\xd9")  # whoever wrote this wanted no more


@pytest.mark.parametrize("near", [5, 10])
def test_at_a_reduced_scale_it_is_the_same(near: int) -> None:
    large = jpeg(pixels=np.resize(NOISE, (200, 333, 3)), quality=30)
    assert np.array_equal(np.asarray(decode(large[:-2], near=near)), np.asarray(decode(large, near=near)))
    with pytest.raises(UndecodableImageError):
        decode(large[:-200], near=near)


def test_a_picture_of_the_models_own_size_without_its_end_is_shown() -> None:
    data = jpeg(pixels=NOISE[:32, :32])
    assert np.array_equal(load_image(data[:-2], 32), load_image(data, 32))
    with pytest.raises(UndecodableImageError):
        load_image(data[:-9], 32)


def test_its_end_takes_work_that_is_predicted() -> None:
    assert read_header(jpeg()[:-2], 32, 10_000).work == 4 * read_header(jpeg(), 32, 10_000).work
