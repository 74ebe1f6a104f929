"""What decoding is predicted to take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.preprocess import FORMATS
from msmlp.service.decoding.cost import KINDS, MEMORY, OUTLIER, PER_PICTURE, DecodeTimes


def test_every_format_that_is_read_has_a_start_value() -> None:
    assert set(KINDS) == {*FORMATS, "AVIF", "pixels"}
    times = DecodeTimes()
    for kind in KINDS:
        assert 0.03 < times.predict(kind, 31e6) < 3, "31 megapixels"
        assert times.predict(kind, 0) == PER_PICTURE


@given(st.sampled_from(KINDS), st.floats(1e-9, 1e-6), st.lists(st.floats(2e6, 3e7), min_size=1, max_size=30))
def test_it_learns_what_pictures_take(kind: str, per_pixel: float, works: list[float]) -> None:
    times, others = DecodeTimes(), {other: DecodeTimes().predict(other, 1e6) for other in KINDS if other != kind}
    before = times.predict(kind, 1e6)
    for _ in range(300):
        for work in works:
            times.learn(kind, work, PER_PICTURE + per_pixel * work)
    expected = PER_PICTURE + 1e6 * per_pixel
    learned = 300 * sum(works) > 20 * MEMORY
    assert abs(times.predict(kind, 1e6) - expected) <= (0.01 * expected if learned else abs(before - expected) * 1.001)
    assert others == {other: times.predict(other, 1e6) for other in others}


def test_a_picture_whose_thread_was_held_up_teaches_little() -> None:
    times = DecodeTimes()
    before = times.predict("PNG", 1e6)
    times.learn("PNG", 1e6, 3600.0)
    assert times.predict("PNG", 1e6) < (1 + OUTLIER * 1e6 / MEMORY) * before


@pytest.mark.parametrize("seconds", [0.0, 300e-6])
def test_thumbnails_tell_what_a_picture_takes_and_nothing_of_pixels(seconds: float) -> None:
    times = DecodeTimes()
    pixels = times.predict("PNG", 1e7) - times.predict("PNG", 0)
    for _ in range(2_000):
        times.learn("PNG", 32 * 32, seconds)
    assert times.predict("PNG", 1e7) - times.predict("PNG", 0) == pytest.approx(pixels)
    assert times.predict("PNG", 32 * 32) == pytest.approx(max(seconds, 25.6e-6), rel=0.01)
