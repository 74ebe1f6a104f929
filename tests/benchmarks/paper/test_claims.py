"""Estimates and verdicts on made-up answers."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.paper.claims import FAILS, HOLDS, UNKNOWN, difference, estimate


def test_the_error_of_paired_answers_is_that_of_their_difference(rows: Callable[..., list[np.ndarray]]) -> None:
    (theirs,) = rows([0.6])
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:100]] = True
    found = difference([ours], [theirs])
    assert found.mean == pytest.approx(0.01)
    assert found.error == found.of_images == pytest.approx(np.sqrt(0.01 * 0.99 / 10_000), rel=1e-3)
    assert found.verdict == HOLDS
    assert difference([theirs], [ours]).verdict == FAILS
    # Unpaired, the same difference is within the noise.
    assert difference(rows([0.605]), [theirs]).error > 4 * found.error


def test_seeds_that_differ_more_than_images_make_the_error() -> None:
    rng = np.random.default_rng(0)
    ours = [rng.random(10_000) < share for share in (0.60, 0.70, 0.80)]
    theirs = [rng.random(10_000) < 0.6 for _ in range(3)]
    found = difference(ours, theirs)
    assert found.of_seeds == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert found.of_images < 0.005
    assert found.error > found.of_seeds
    assert found.verdict == UNKNOWN  # 0.1 ± 0.06


def test_few_seeds_must_agree_better_than_many_images() -> None:
    image = np.ones(10_000)
    seeds = estimate([0.02 * image, 0.05 * image, 0.04 * image])
    assert (seeds.of_images, seeds.of_seeds) == pytest.approx((0, 0.0088), abs=1e-4)
    assert seeds.interval == pytest.approx(4.3027 * seeds.error, rel=1e-4)
    assert seeds.mean > 4 * seeds.error
    assert seeds.verdict == UNKNOWN
    assert estimate([0.03 * image, 0.05 * image, 0.04 * image]).verdict == HOLDS
    assert estimate([-0.03 * image, -0.05 * image, -0.04 * image]).verdict == FAILS


def test_where_images_make_the_error_two_of_it_are_enough(rows: Callable[..., list[np.ndarray]]) -> None:
    (right,) = rows([0.5])
    found = estimate([right, right, right])
    assert found.of_seeds == 0
    assert found.interval == pytest.approx(1.95996 * found.error, rel=1e-4)


def test_one_seed_has_the_binomial_error() -> None:
    right = np.arange(5000) < 4000
    found = estimate([right])
    assert (found.mean, found.of_seeds, found.images) == (0.8, 0.0, 5000)
    assert found.error == pytest.approx(np.sqrt(0.8 * 0.2 / 5000), rel=1e-3)
