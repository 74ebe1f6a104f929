"""Colours of RGB profiles: those of a phone's Display P3 become sRGB's, and no profile is ever a reason to refuse."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from msmlp.client.request import _read
from msmlp.model import profiles
from msmlp.model.preprocess import load_image
from msmlp.model.profiles import MOST_BYTES, MOST_KNOWN, WORK
from msmlp.service.decoding.pictures import read_header
from tests.pictures.profiles import DISPLAY_P3, SRGB_LIKE, to_srgb
from tests.pictures.shown import SMOOTH, encode

SIDE = 12
RGB = np.ascontiguousarray(SMOOTH[:SIDE, :SIDE, :3])
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    profiles._known.clear()


@pytest.mark.parametrize(("kind", "mode"), [*((kind, "RGB") for kind in FORMATS), ("PNG", "RGBA"), ("WEBP", "RGBA")])
def test_display_p3_becomes_srgb(kind: str, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data, plain = (encode(image, kind, **FORMATS[kind], **extra) for extra in ({"icc_profile": DISPLAY_P3}, {}))
    found = load_image(data, SIDE)
    assert np.abs(found - to_srgb(load_image(plain, SIDE))).max() <= 2
    assert np.abs(found - load_image(plain, SIDE).astype(int)).max() > 10
    assert (read_header(data, SIDE, 10_000).decode() == found).all()


def test_palette_colours_are_converted() -> None:
    image = Image.fromarray(RGB).quantize(20)
    data, plain = encode(image, "PNG", icc_profile=DISPLAY_P3), encode(image, "PNG")
    assert np.abs(load_image(data, SIDE) - to_srgb(load_image(plain, SIDE))).max() <= 2


def test_a_large_jpeg_is_converted_once_it_is_small() -> None:
    image = Image.fromarray(np.repeat(np.repeat(RGB, 20, 0), 20, 1))
    data, plain = encode(image, "JPEG", icc_profile=DISPLAY_P3), encode(image, "JPEG")
    assert np.abs(load_image(data, SIDE) - to_srgb(load_image(plain, SIDE))).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        SRGB_LIKE,
        DISPLAY_P3[:300],
        DISPLAY_P3[:128] + bytes(200),
        DISPLAY_P3[:16] + b"GRAY" + DISPLAY_P3[20:],
        DISPLAY_P3 + bytes(MOST_BYTES),
        b"no profile",
        b"",
    ],
    ids=["sRGB", "by another name", "cut", "empty", "grey", "large", "text", "nothing"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_other_profiles_change_nothing(kind: str, profile: bytes) -> None:
    image = Image.fromarray(RGB)
    data = encode(image, kind, icc_profile=profile or None, **FORMATS[kind])
    assert np.array_equal(load_image(data, SIDE), load_image(encode(image, kind, **FORMATS[kind]), SIDE))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_other_colours_than_the_pictures_is_left_out(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data, plain = encode(image, "JPEG", icc_profile=DISPLAY_P3), encode(image, "JPEG")
    assert np.array_equal(load_image(data, SIDE), load_image(plain, SIDE))


def test_a_damaged_chunk_is_left_out() -> None:
    whole = encode(RGB, "PNG", icc_profile=DISPLAY_P3)
    at = whole.index(b"iCCP")
    end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
    plain = load_image(encode(RGB, "PNG"), SIDE)
    for chunk in (whole[at:end], b"iCCPname\0\0nothing", b"iCCPname", b"iCCP"):
        checksum = b"sums" if chunk == whole[at:end] else struct.pack(">I", zlib.crc32(chunk))
        data = whole[: at - 4] + struct.pack(">I", len(chunk) - 4) + chunk + checksum + whole[end + 4 :]
        assert np.array_equal(load_image(data, SIDE), plain)


def test_the_profiles_last_seen_are_prepared_and_the_work_for_another_is_predicted() -> None:
    data, plain = encode(RGB, "PNG", icc_profile=DISPLAY_P3), encode(RGB, "PNG")
    assert read_header(data, 8, 10_000).work == read_header(plain, 8, 10_000).work + WORK
    load_image(data, 8)
    assert read_header(data, 8, 10_000).work == read_header(plain, 8, 10_000).work
    for number in range(3 * MOST_KNOWN):
        load_image(encode(RGB, "PNG", icc_profile=DISPLAY_P3 + bytes([number])), 8)
        assert len(profiles._known) <= MOST_KNOWN


def test_the_client_converts_a_pillow_image() -> None:
    data = encode(RGB, "PNG", icc_profile=DISPLAY_P3)
    assert np.array_equal(_read(Image.open(io.BytesIO(data)), "image"), load_image(data, SIDE))
