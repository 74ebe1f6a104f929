import numpy as np
import pytest

from msmlp.bench.offer import MEAN_SIZE, SIZES, draw, named_points
from msmlp.model.weights import OperatingPoint


def test_an_offer_has_the_rate_that_was_asked_for() -> None:
    offer = draw(np.random.default_rng(0), 1000.0, 200.0, points=3, images=50)
    assert offer.sizes.sum() / 200 == pytest.approx(1000, rel=0.05)
    gaps = np.diff(offer.due)
    # Exponential: the mean is the standard deviation.
    assert gaps.mean() == pytest.approx(MEAN_SIZE / 1000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_everything_offered_is_there() -> None:
    offer = draw(np.random.default_rng(1), 2000.0, 20.0, points=3, images=50)
    assert offer.due[0] == 0
    assert (np.diff(offer.due) >= 0).all()
    assert offer.due[-1] < 20
    assert set(offer.sizes.tolist()) == set(SIZES)
    assert set(offer.points.tolist()) == {0, 1, 2}
    assert set(offer.first.tolist()) == set(range(50))


def test_the_seed_decides() -> None:
    first, again = (draw(np.random.default_rng(7), 500.0, 2.0, 3, 10) for _ in range(2))
    assert first.due.tolist() == again.due.tolist()


def test_numbered_points_are_not_offered() -> None:
    rest = {"thresholds": (0.5,), "expected_accuracy": 0.5, "standard_error": 0.1, "mean_gflops": 1.0}
    points = [
        OperatingPoint(name=name, exit_share=(0.5, 0.5), solver="joint", **rest) for name in ("p01", "fast", "precise")
    ]
    assert [point.name for point in named_points(points)] == ["fast", "precise"]
