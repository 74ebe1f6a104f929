"""Views: pixels as torchvision and timm make them, of several sizes in one row."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pydantic import ValidationError

from msmlp.model.preprocess import Preprocess, load_image
from msmlp.model.views import FILTERS, Resize, View, Views, to_square, views_of

PHOTOGRAPHS = {
    name: Image.fromarray(getattr(skimage.data, name)()) for name in ("cat", "coffee", "astronaut", "rocket")
}


def torchvision(image: Image.Image, size: int, shorter_side: int, name: str) -> np.ndarray:
    """`Compose([Resize(shorter_side, interpolation), CenterCrop(size)])` on a Pillow image, as torchvision 0.20 has it
    (transforms/functional.py); timm's evaluation transforms are the same two."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = shorter_side, int(shorter_side * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = image if image.size == new else image.resize(new, FILTERS[name])
    top, left = round((new[1] - size) / 2.0), round((new[0] - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "shorter_side"),
    # torchvision's first and second weights, timm's crop_pct 0.9 and 0.95, none, and one that enlarges.
    [(224, 256), (224, 232), (224, 248), (288, 303), (64, 64), (64, 73), (320, 400)],
)
def test_pixels_are_those_of_torchvision(name: str, kind: str, size: int, shorter_side: int) -> None:
    image = PHOTOGRAPHS[name]
    view = View(size, Resize.model_validate({"shorter_side": shorter_side, "filter": kind}))
    found, expected = Views((view,)).pixels(image), torchvision(image, size, shorter_side, kind)
    assert found.shape == expected.shape == (size, size, 3)
    assert np.array_equal(found, expected)


def test_a_picture_one_pixel_too_large_is_cropped() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 17, 3), dtype=np.uint8)
    found = Views((View(16, Resize(shorter_side=16)),)).pixels(Image.fromarray(pixels))
    assert np.array_equal(found, pixels[:, :16])


def test_a_long_picture_is_nearly_that_too() -> None:
    long = Image.fromarray(np.concatenate([np.asarray(PHOTOGRAPHS["cat"])] * 8, axis=1))
    found = Views((View(224, Resize(shorter_side=256)),)).pixels(long)
    assert np.abs(found.astype(int) - torchvision(long, 224, 256, "bicubic")).max() <= 2


def test_the_whole_of_a_very_long_picture_is_never_made() -> None:
    """Scaled to 256 pixels its longer side would have 256 million."""
    line = Image.new("RGB", (1_000_000, 1), (10, 120, 230))
    found = Views((View(224, Resize(shorter_side=256)),)).pixels(line)
    assert (found == (10, 120, 230)).all()


def test_several_views_follow_one_another_in_a_row() -> None:
    image = PHOTOGRAPHS["cat"]
    parts = (View(32), View(16, Resize(shorter_side=20, filter="bilinear")), View(8))
    views = Views(parts)
    row = views.pixels(image)
    assert (row.shape, row.dtype) == (views.shape, np.uint8)
    assert np.array_equal(row, np.concatenate([Views((part,)).pixels(image).ravel() for part in parts]))


def test_a_size_alone_is_our_own_networks_view() -> None:
    assert np.array_equal(views_of(32).pixels(PHOTOGRAPHS["cat"]), to_square(PHOTOGRAPHS["cat"], 32))
    assert Preprocess(size=32).view == View(32)


def test_a_large_jpeg_is_decoded_whole_for_other_peoples_networks() -> None:
    stream = io.BytesIO()
    PHOTOGRAPHS["coffee"].save(stream, "JPEG", quality=95)
    views = Views((View(32, Resize(shorter_side=36)),))
    with Image.open(stream) as whole:
        expected = torchvision(whole, 32, 36, "bicubic")
    assert np.abs(load_image(stream.getvalue(), views).astype(int) - expected).max() <= 1


def test_a_preprocess_says_how_pictures_are_scaled() -> None:
    given = {"size": 8, "resize": {"shorter_side": 9, "filter": "bilinear"}}
    assert Preprocess.model_validate(given).view == View(8, Resize(shorter_side=9, filter="bilinear"))
    for wrong in ({"shorter_side": 9, "filter": "lanczos"}, {"shorter_side": 0}, "squash"):
        with pytest.raises(ValidationError, match="resize"):
            Preprocess.model_validate({"size": 8, "resize": wrong})
