"""Arrivals have the rates that were asked for, and a log is replayed."""

import json
import math
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.errors import DataError, OptionError
from msmlp.plan.replica import Request
from msmlp.plan.traffic import SHAPES, from_log, thinned, traffic_of
from tests.fakes import picture
from tests.processes import msmlp_serve
from tests.servers import encoded, wait_until


def drawn(shape: str, rate: float, seconds: float, factor: float = 1.0, images: int = 1) -> np.ndarray:
    traffic = traffic_of(shape, rate, seconds, images)
    assert traffic.seconds == seconds
    requests = traffic.make(factor, np.random.default_rng(0))
    assert {request.images for request in requests} == {images}
    return np.array([request.sent for request in requests])


@pytest.mark.parametrize("shape", SHAPES)
def test_requests_come_in_order_within_their_time_and_the_factor_multiplies(shape: str) -> None:
    one, three = drawn(shape, 100, 60), drawn(shape, 100, 60, factor=3, images=4)
    for sent in (one, three):
        assert (np.diff(sent) >= 0).all()
        assert 0 <= sent[0] <= sent[-1] < 60
    assert len(three) == pytest.approx(3 * len(one), rel=0.1)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(drawn("poisson", 100, 300))
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_a_day_has_its_peak_at_noon() -> None:
    hours = np.histogram(drawn("daily", 100, 240), 24)[0] / 10
    assert hours[11:13].mean() == pytest.approx(100, rel=0.1)
    assert hours[[0, 23]].mean() == pytest.approx(25, rel=0.2)


def test_bursts_are_three_times_as_dense() -> None:
    sent = drawn("bursts", 100, 60)
    burst = sent % 30 >= 27
    assert burst.sum() / 6 == pytest.approx(300, rel=0.1)
    assert (~burst).sum() / 54 == pytest.approx(100, rel=0.1)


def test_the_access_log_of_a_service_is_replayed(tiny_weights: Path, tmp_path: Path) -> None:
    image = encoded(picture(1.0, size=32))
    with msmlp_serve(tiny_weights, "--frontends", "1", "--log-format", "json", "--access-log") as served:
        served.wait_until_ready()
        for _ in range(3):
            form = [("images", image), ("images", image)]
            assert httpx.post(f"{served.url}/classify", files=form, timeout=60).status_code == 200
        assert httpx.get(f"{served.url}/v2/models/msmlp", timeout=60).status_code in (200, 404)
        wait_until(lambda: served.log.count('"images": 2') == 3)
        log = tmp_path / "access.log"
        log.write_text(served.log)
    requests = from_log(log)
    assert [request.images for request in requests] == [2, 2, 2]
    assert requests[0].sent == 0
    assert sorted(requests) == requests
    traffic = traffic_of(str(log), None)
    assert traffic.make(1, np.random.default_rng(0)) == requests
    assert traffic.seconds > requests[-1].sent, "or the last would not count"
    assert traffic.lead == 0


@given(st.lists(st.floats(0, 10), max_size=50), st.floats(0, 5))
def test_a_log_of_another_density(sent: list[float], factor: float) -> None:
    requests = [Request(each, 1) for each in sorted(sent)]
    found = thinned(requests, factor, 10, np.random.default_rng(0))
    assert int(factor) * len(sent) <= len(found) <= (int(factor) + 1) * len(sent)
    assert sorted(found) == found
    assert all(0 <= each.sent <= 10 for each in found)


def test_what_is_no_traffic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="--traffic: 'hourly' is not a file; expected one of poisson, daily, bursts, or the path"
    ):
        traffic_of("hourly", 1)
    with pytest.raises(OptionError, match="--rate: missing; --traffic daily needs a rate in requests per second"):
        traffic_of("daily", None)
    log = tmp_path / "log"
    log.write_text('{"logger": "msmlp.engine"}\nno JSON\n[1]\n{"logger": "msmlp.access", "images": 0}\n')
    with pytest.raises(DataError, match="has no requests; expected what msmlp serve --log-format json --access-log"):
        traffic_of(str(log), None)
    with pytest.raises(OptionError, match="--rate: cannot be combined with an access log, which sets it"):
        traffic_of(str(log), 5)
    with pytest.raises(OptionError, match="--images: cannot be combined with an access log, which sets it"):
        traffic_of(str(log), None, images=2)
    for rate, seconds in ((0.5, 10), (1e6, 60), (math.inf, 1), (math.nan, 1)):
        with pytest.raises(OptionError, match=r"--rate: .*; expected 100 to 5,000,000 requests in a run"):
            traffic_of("poisson", rate, seconds)
    with pytest.raises(OptionError, match="--seconds: 20; expected at least 30, as bursts come that often"):
        traffic_of("bursts", 100, 20)
    log.write_text('{"logger": "msmlp.access", "images": Infinity, "duration_ms": 1, "timestamp": "2026-11-30"}\n')
    with pytest.raises(DataError, match="has no requests"):
        from_log(log)
    log.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read: it is not text in UTF-8"):
        from_log(log)
    line = {"logger": "msmlp.access", "images": 2, "duration_ms": 500, "timestamp": "2026-11-30T10:00:00.500000+00:00"}
    log.write_text(json.dumps(line) + "\n")
    assert from_log(log) == [Request(0, 2)]
