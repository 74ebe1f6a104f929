"""The soak, for a moment, and what it calls a leak."""

from pathlib import Path

import pytest

from benchmarks.soak import memory_growth, soak


def test_a_real_server_answers_everything_and_returns_every_permit(tiny_weights: Path) -> None:
    serve = ["--weights", str(tiny_weights), "--device", "cpu", "--max-batch", "8"]
    document = soak(serve, minutes=0.02, load=0.3, every=0.2, capacity_seconds=0.3)
    assert document["faults"] == []
    assert document["ok"]
    assert document["requests"] == sum(document["statuses"].values()) > 0
    assert set(document["statuses"]) <= {"200", "429"}
    assert document["at_the_end"]["inflight"] == 0
    assert all(sample["rss_mib"] > 10 for sample in document["samples"])


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
