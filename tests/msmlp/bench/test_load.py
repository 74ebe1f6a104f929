import numpy as np
import pytest

from msmlp.bench.load import MEAN_SIZE, SIZES, draw, named_points
from msmlp.model.weights import OperatingPoint


def test_requests_have_the_rate_that_was_asked_for() -> None:
    requests = draw(np.random.default_rng(0), 1000.0, 200.0, points=3, images=50)
    assert sum(request.size for request in requests) / 200 == pytest.approx(1000, rel=0.05)
    gaps = np.diff([request.due for request in requests])
    # Exponential: the mean is the standard deviation.
    assert gaps.mean() == pytest.approx(MEAN_SIZE / 1000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_every_size_point_and_image_is_drawn() -> None:
    requests = draw(np.random.default_rng(1), 2000.0, 20.0, points=3, images=50)
    assert requests[0].due == 0
    assert requests == sorted(requests)
    assert requests[-1].due < 20
    assert {request.size for request in requests} == set(SIZES)
    assert {request.point for request in requests} == {0, 1, 2}
    assert {request.first for request in requests} == set(range(50))


def test_the_seed_decides() -> None:
    first, again = (draw(np.random.default_rng(7), 500.0, 2.0, 3, 10) for _ in range(2))
    assert first == again


def test_numbered_points_are_not_offered() -> None:
    rest = {"thresholds": (0.5,), "expected_accuracy": 0.5, "standard_error": 0.1, "mean_gflops": 1.0}
    points = [
        OperatingPoint(name=name, exit_share=(0.5, 0.5), solver="joint", **rest) for name in ("p01", "fast", "precise")
    ]
    assert [point.name for point in named_points(points)] == ["fast", "precise"]
