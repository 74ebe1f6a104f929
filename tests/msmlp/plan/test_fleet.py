"""A fleet's queues are those of theory, and its routers and failures do what they say."""

from collections.abc import Callable

import numpy as np
import pytest

from msmlp.model.errors import OptionError
from msmlp.plan.fleet import ROUTINGS, Failure, Fleet, Outcome, Routing, summary
from msmlp.plan.replica import Limits, Replica, Request
from msmlp.plan.traffic import arrivals
from tests.msmlp.plan.conftest import Build

FOREVER = Limits(max_wait=0, brownout=0)


def steady(rate: float, seconds: float, seed: int = 1) -> list[Request]:
    return list(arrivals(lambda _: rate, rate, seconds, np.random.default_rng(seed)))


def run(
    build: Callable[[], Replica],
    replicas: int,
    rate: float,
    seconds: float = 20,
    routing: Routing = "two-choices",
    failure: Failure | None = None,
) -> Outcome:
    fleet = Fleet(build, replicas, routing, failure, np.random.default_rng(2))
    return fleet.run(steady(rate, seconds), seconds)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_server_of_one_image_is_a_queue_as_lindley_has_it(replica: Build, load: float) -> None:
    """Without batches, and with all work in the first stage, a request waits for the work before it."""
    service = 0.001

    def build() -> Replica:
        seconds = ((service,), (1e-9,), (1e-9,))
        changes = {"layout": "process", "buckets": (1,), "request_seconds": 0, "image_seconds": 0}
        return replica(FOREVER, stage_seconds=seconds, **changes)

    found = run(build, 1, load / service, seconds=4).columns
    wait, waits = 0.0, [0.0]
    for gap in np.diff(found["sent"]):
        waits.append(wait := max(0.0, wait + service - gap))
    assert found["latency"] - service == pytest.approx(waits, abs=1e-5)
    assert max(waits) > service


def test_informed_routers_have_shorter_tails(replica: Build) -> None:
    random, *informed = (
        summary(run(lambda: replica(FOREVER), 8, 3300, 4, routing), 1, 4).p99_ms or 0.0 for routing in ROUTINGS
    )
    assert 0 < max(informed) < 0.85 * random


def test_more_replicas_answer_sooner_and_are_less_busy(replica: Build) -> None:
    few, many = (run(lambda: replica(FOREVER), count, 800, 5) for count in (2, 8))
    few_seen, many_seen = (summary(each, 0, 5) for each in (few, many))
    assert few_seen.p50_ms is not None
    assert many_seen.p50_ms is not None
    assert many_seen.p50_ms < few_seen.p50_ms
    assert many.device_busy < 0.5 * few.device_busy
    assert few_seen.images_per_second == many_seen.images_per_second == pytest.approx(800, rel=0.1)


def test_a_proxy_adds_its_time_and_limits_the_rate(replica: Build) -> None:
    plain, proxied = (Fleet(lambda: replica(FOREVER), 4, proxy=proxy) for proxy in (0.0, 0.002))
    slow = [Request(0.5 * number, 1) for number in range(6)]
    before, after = (each.run(slow, 3).columns["latency"] for each in (plain, proxied))
    assert after - before == pytest.approx(0.002)
    later = Fleet(lambda: replica(FOREVER), 4, proxy=0.002, proxy_latency=0.005).run(slow, 3).columns["latency"]
    assert later - before == pytest.approx(0.007)
    crowded = Fleet(lambda: replica(FOREVER), 4, proxy=0.002).run(steady(800, 4), 4)
    done = crowded.columns["sent"] + crowded.columns["latency"]
    assert len(done) / done.max() == pytest.approx(500, rel=0.05)


def test_a_third_that_dies_takes_what_it_had_and_the_others_go_on(replica: Build) -> None:
    limits = Limits(max_wait=0.5, brownout=0.1)
    outcome = run(lambda: replica(limits), 3, 1750, 6, failure=Failure(at=3, replicas=1))
    statuses = [each.status for each in outcome.answers]
    assert len(statuses) == len(steady(1750, 6))
    assert 0 < statuses.count(503) < 100
    before, after = summary(outcome, 1, 3), summary(outcome, 4, 6)
    assert after.images_per_second == pytest.approx(before.images_per_second, rel=0.1)
    assert after.degraded > before.degraded
    assert after.exit_share[0] > before.exit_share[0]


def test_new_ones_take_the_place_of_the_dead(replica: Build) -> None:
    limits = Limits(max_wait=0.5, brownout=0.1)
    outcome = run(lambda: replica(limits), 3, 1750, 11, failure=Failure(3, 1, back=5))
    between, again = summary(outcome, 4, 5), summary(outcome, 9, 11)
    assert again.degraded < between.degraded


def test_not_all_may_die(replica: Build) -> None:
    with pytest.raises(OptionError, match="--fail: 3 of 3 replicas would die; expected at most 2"):
        Fleet(replica, 3, failure=Failure(1, 3))


def test_the_same_seed_is_the_same_run(replica: Build) -> None:
    first, second = (run(lambda: replica(spread=0.3), 3, 1000, 3) for _ in range(2))
    assert first.answers == second.answers


def test_brownout_levels_are_kept_over_time(replica: Build) -> None:
    outcome = run(lambda: replica(Limits(max_wait=0.4, brownout=0.05)), 1, 1500, 5)
    times, levels = zip(*outcome.levels, strict=True)
    assert list(times) == sorted(times)
    assert max(levels) > 0


def test_a_span_without_requests_has_no_latency() -> None:
    seen = summary(Outcome(), 0, 1)
    assert (seen.requests, seen.p50_ms, seen.accuracy, seen.exit_share) == (0, None, None, ())
