"""A scale whose trainings take a second, and made-up results."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.paper.measure import Answers, Result
from benchmarks.paper.plan import SCALES, Scale
from benchmarks.paper.text import SCALE

ABOUT = {
    "command": "msmlp train --data somewhere",
    "classes": [f"class {i}" for i in range(10)],
    "images_per_second": 1234.5,
    "device": "cpu (2 threads)",
    "dtype": "bfloat16",
    "torch": "2.13",
    "git_commit": "abc",
    "images": 40_000,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Scale:
    """The scale `tiny`, two epochs and two seeds long."""
    stage = {"width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 8}
    scale = Scale("tiny", ("tiny",), stage, 2, "float32", 2)
    monkeypatch.setitem(SCALES, "tiny", scale)
    monkeypatch.setitem(SCALE, "tiny", "About tiny networks.")
    return scale


def _answers(rng: np.random.Generator, shares: list[float], images: int) -> Answers:
    # An image that is easy for one exit is easy for the next, and confident answers are right.
    ease = rng.permutation(images) / images
    correct = np.stack([ease < share for share in shares], axis=1)
    scores = np.stack([1 - ease * (0.9 - 0.1 * k) for k in range(len(shares))], axis=1).astype(np.float32)
    return Answers(scores, correct, rng.integers(0, 10, images))


@pytest.fixture
def made_up() -> Callable[..., Result]:
    """`made_up([0.5, 0.7], seed=3)`: a result whose exits have about these accuracies; the same images per seed."""

    def result(shares: list[float], seed: int = 0, images: int = 1000) -> Result:
        rng = np.random.default_rng(seed)
        return Result(_answers(rng, shares, images), _answers(rng, shares, images), ABOUT)

    return result


@pytest.fixture
def rows() -> Callable[[Iterable[float]], list[NDArray[np.bool_]]]:
    """Correctness of 10,000 images per seed, of about the given shares."""
    rng = np.random.default_rng(5)
    return lambda shares: [rng.random(10_000) < share for share in shares]
