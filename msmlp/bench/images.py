"""What benchmarks classify: test images of a data set, or squares cut from photographs."""

from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DataError


def pick_images(data: Path | None, count: int, size: int) -> NDArray[np.uint8]:
    """`count` images uint8 [count, size, size, 3], repeated where there are fewer.

    Without `data` they are squares of one photograph: real pixels, but not the classes trained on, so that exits fire
    as they do there and not as they would on the data.
    """
    images = _squares(count, size) if data is None else _test_images(data, size)
    return images[np.arange(count) % len(images)]


def _test_images(data: Path, size: int) -> NDArray[np.uint8]:
    from msmlp.model.data import load_dataset

    test = load_dataset(data, size).test
    if test is None:
        raise DataError(f"{data} has no test split")
    return test.pixels


def _squares(count: int, size: int) -> NDArray[np.uint8]:
    from PIL import Image

    rng = np.random.default_rng(0)
    with (files("msmlp.service") / "ui" / "cat.jpg").open("rb") as file, Image.open(file) as photograph:
        whole = photograph.convert("RGB")
    squares = []
    for _ in range(count):
        side = int(rng.integers(size, min(whole.size)))
        x, y = (int(rng.integers(0, full - side + 1)) for full in whole.size)
        squares.append(np.asarray(whole.resize((size, size), box=(x, y, x + side, y + side)), dtype=np.uint8))
    return np.stack(squares)
