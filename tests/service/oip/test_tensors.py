"""Tensors as bytes and as JSON: what is written is read back, and lies are found."""

import base64
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.errors import MalformedBodyError
from msmlp.service.oip.response import join_bytes
from msmlp.service.oip.tensors import (
    CHUNK,
    files_from_json,
    pixels_from_bytes,
    pixels_from_json,
    pixels_from_numbers,
    split_bytes,
)

SHAPES = st.tuples(*[st.integers(1, 4)] * 3).map(lambda sides: [*sides, 3])


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_bytes_elements_come_back(elements: list[bytes]) -> None:
    assert split_bytes(memoryview(join_bytes(elements)), len(elements)) == elements
    text = json.dumps([base64.b64encode(e).decode() for e in elements]).encode()
    assert elements == [] or files_from_json(text, len(elements)) == elements


@given(SHAPES, st.data())
def test_pixels_come_back_from_bytes_and_from_both_forms_of_json(shape: list[int], data: st.DataObject) -> None:
    size = int(np.prod(shape))
    pixels = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8).reshape(shape)
    for read in (
        pixels_from_bytes(memoryview(pixels.tobytes()), shape),
        pixels_from_json(json.dumps(pixels.tolist(), indent=1).encode(), shape),
        pixels_from_json(json.dumps(pixels.ravel().tolist()).encode(), shape),
        pixels_from_numbers(pixels.ravel().tolist(), shape),
    ):
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, pixels)


def test_pixels_from_bytes_are_not_copied() -> None:
    raw = bytearray(12)
    pixels = pixels_from_bytes(memoryview(raw), [1, 2, 2, 3])
    raw[5] = 7
    assert pixels[0, 0, 1, 2] == 7


@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_bytes_are_elements_or_refused(raw: bytes, count: int) -> None:
    try:
        elements = split_bytes(memoryview(raw), count)
    except MalformedBodyError:
        return
    assert len(elements) == count
    assert join_bytes(elements) == raw


@pytest.mark.parametrize(
    ("raw", "count", "said"),
    [
        (b"\x05\x00\x00", 1, "4-byte length before element"),
        (struct.pack("<I", 2**32 - 1) + b"abc", 1, "element 0 should have 4294967295 bytes; 3 are left"),
        (join_bytes([b"a"]) + struct.pack("<I", 1), 2, "element 1 should have 1 bytes; 0 are left"),
        (join_bytes([b"a", b"b"]), 1, "more elements were sent than the 1 of"),
        (join_bytes([b"a"]), 3, "1 elements were sent; the shape has 3"),
        (b"", 1, "0 elements were sent; the shape has 1"),
    ],
)
def test_lengths_that_lie(raw: bytes, count: int, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        split_bytes(memoryview(raw), count)


def test_surplus_elements_are_not_all_counted_first() -> None:
    """A length that lies, after those of the shape, is never come to."""
    raw = join_bytes([b"", b""]) + struct.pack("<I", 99)
    with pytest.raises(MalformedBodyError, match="more elements were sent than the 1 of"):
        split_bytes(memoryview(raw), 1)


@pytest.mark.parametrize("size", [0, 11, 13])
def test_pixels_of_another_size_than_the_shape(size: int) -> None:
    with pytest.raises(MalformedBodyError, match=f"{size} bytes were sent; shape .* has 12"):
        pixels_from_bytes(memoryview(bytes(size)), [1, 2, 2, 3])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([0, 0, 256], "whole numbers from 0 to 255"),
        ([0, 0, -1], "whole numbers from 0 to 255"),
        ([0, 0, 10**30], "whole numbers from 0 to 255"),
        ([0, 0, 0.5], "whole numbers from 0 to 255"),
        ([True, False, True], "whole numbers from 0 to 255"),
        ([None, None, None], "whole numbers from 0 to 255"),
        (["a", "b", "c"], "whole numbers from 0 to 255"),
        ([{}, {}, {}], "whole numbers from 0 to 255"),
        ([0, 0], "has shape"),
        ([], "has shape"),
        ([[0, 0, 0]], "has shape"),
        ([[0], [0, 0]], "unevenly"),
        ([0, [0, 0]], "unevenly"),
        ([[[0, 0, 0]]], "unevenly"),
        ([[[[0, 0], 0]]], "unevenly"),
        ([[[[0, 0, 0]]], []], "unevenly"),
        (0, "unevenly"),
        ("[0,0,0]", "whole numbers from 0 to 255"),
        ({}, "whole numbers from 0 to 255"),
    ],
)
def test_json_that_is_no_pixels(data: Any, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        pixels_from_json(json.dumps(data).encode(), [1, 1, 1, 3])


def test_a_number_of_a_million_digits_is_refused_in_its_place() -> None:
    with pytest.raises(MalformedBodyError, match="whole numbers from 0 to 255"):
        pixels_from_json(b"[0,0," + b"1" * 10**6 + b"]", [1, 1, 1, 3])


def test_more_numbers_than_are_read_at_a_time() -> None:
    pixels = np.arange(2 * CHUNK * 3).astype(np.uint8).reshape(2, 256, CHUNK // 256, 3)
    for data in (pixels, pixels.ravel()):
        found = pixels_from_json(json.dumps(data.tolist()).encode(), list(pixels.shape))
        np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(pixels_from_numbers(pixels.ravel().tolist(), list(pixels.shape)), pixels)


@pytest.mark.parametrize(("numbers", "said"), [([0] * 4, "has shape .4.; expected .3."), ([0, 0, 256], "0 to 255")])
def test_numbers_that_are_no_pixels(numbers: list[int], said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        pixels_from_numbers(numbers, [1, 1, 1, 3])


@pytest.mark.parametrize("item", ["[]", "{}", "0", '"a"', "[[]]", '""', "null"])
def test_what_the_shape_does_not_allow_is_never_built(item: str) -> None:
    text = f"[{','.join([item] * 100_000)}]".encode()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBodyError):
            pixels_from_json(text, [1, 32, 32, 3])
        with pytest.raises(MalformedBodyError, match="100000 elements were sent; the shape has 1"):
            files_from_json(text, 1)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(text) + 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["?"], "base64"),
        ([1], "base64"),
        ([["YQ=="]], "base64"),
        ("YQ==", "base64"),
        (["YQ\u00e9="], "base64"),
        ([], "0 elem"),
        (["YQ==", "YQ=="], "2 elem"),
    ],
)
def test_json_that_is_no_files(data: Any, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        files_from_json(json.dumps(data).encode(), 1)
