"""What the soak calls a leak, and the soak itself for a moment."""

from pathlib import Path

import pytest

from tests.chaos.soak import memory_growth, soak


@pytest.mark.chaos
def test_a_short_one(tiny_weights: Path) -> None:
    figures = soak(tiny_weights, 0.5, ("--frontends", "2", "--engine", "process"))
    assert figures["faults"] == []
    assert len(figures["events"]) == 3, "a reload and two kills"
    assert figures["outcomes"]["200"] > 1000
    assert all(sample["rss_mib"] > 10 for sample in figures["samples"])


def samples(*rss: float, every: float = 30.0) -> list[dict[str, float]]:
    return [{"seconds": i * every, "rss_mib": value} for i, value in enumerate(rss)]


def test_what_is_taken_at_first_is_no_leak() -> None:
    memory = memory_growth(samples(100, 200, 300, 300, 300, 300))
    assert memory["slope_mib_per_minute"] == pytest.approx(0, abs=1e-9)
    assert memory["settled_mib"] == memory["last_mib"] == 300


def test_what_keeps_growing_is() -> None:
    memory = memory_growth(samples(100, 200, 300, 301, 302, 303, 304))
    assert memory["slope_mib_per_minute"] == pytest.approx(2)
    assert memory["growth_mib"] == pytest.approx(4)


def test_one_sample_says_nothing() -> None:
    assert memory_growth(samples(100))["slope_mib_per_minute"] == 0
