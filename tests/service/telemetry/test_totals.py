"""Several processes report as one: their sums are those of the traffic, and never fall."""

import math
import os
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from msmlp.service.service import Service
from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import RequestRecord, Statistics
from msmlp.service.telemetry.totals import AGREEMENT, RULES, Snapshot, Totals, take_snapshot
from tests.fakes import picture
from tests.servers import encoded, fake_backend, fake_service, serving

ADDED = {
    "msmlp_capacity_connections",
    "msmlp_capacity_images",
    "msmlp_body_work",
    "msmlp_connections",
    "msmlp_engines",
    "msmlp_frontends_ready",
    "msmlp_inflight_images",
    "msmlp_queue_images",
    "msmlp_throughput_images_per_second",
    *(
        f"{whose}process_{name}"
        for whose in ("", "msmlp_engine_")
        for name in ("open_fds", "resident_memory_bytes", "virtual_memory_bytes")
    ),
}
"""Gauges whose sum says something."""

times = count()


def snapshot(*metrics: Metric, pid: int = 1, shadows: dict[int, tuple[int, int]] | None = None) -> Snapshot:
    """Of a process that has only these metrics, as it comes out of the other end of a pipe."""
    sent = Snapshot(pid, next(times), list(metrics), shadows or {}, Statistics(), 0)
    received: Snapshot = pickle.loads(pickle.dumps(sent))
    return received


def snapshot_of(counting: Any) -> Snapshot:
    return take_snapshot(counting.metrics, counting.statistics)


def gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, "A gauge.", value)


def counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(name, "A counter.", value)


def values(totals: Totals, extra: Iterable[Metric] = ()) -> dict[str, float]:
    """Every sample of what is rendered; the name has the labels."""
    return {
        sample.name + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(totals.render(extra).decode())
        for sample in family.samples
    }


def shown(snapshots: Sequence[Snapshot], *, shared_engine: bool = False) -> dict[str, float]:
    totals = Totals(shared_engine=shared_engine)
    for index, each in enumerate(snapshots):
        totals.update(index, each)
    return values(totals)


@pytest.fixture(scope="module")
def service(tiny_weights: Path) -> Service:
    """One that has served something of everything that adds series."""
    service = fake_service(tiny_weights, fake_backend, shadow=1)
    service.metrics.watch_engines(SimpleNamespace(states=["up"], restarts=0, pids=[os.getpid()], cpu_seconds={}))
    with serving(service) as client:
        files = [("images", encoded(picture(*scores, size=32))) for scores in ((1.0,), (0.2, 0.8), (0.1, 0.1, 0.1))]
        client.post("/classify", files=files, params={"thresholds": "0.5,0.5"}).raise_for_status()
        assert client.get("/nowhere").status_code == 404
        client.get("/metrics").raise_for_status()
    return service


def test_one_process_is_shown_as_it_shows_itself(service: Service) -> None:
    totals = Totals()
    totals.update(0, pickle.loads(pickle.dumps(snapshot_of(service))))
    summed, own = totals.render().decode().splitlines(), service.metrics.render().decode().splitlines()
    moving = re.compile(r"(?<=^)((?:msmlp_engine_)?process_\S+|msmlp_throughput_images_per_second) \S+$")
    assert [moving.sub(r"\1", line) for line in summed] == [moving.sub(r"\1", line) for line in own]
    assert len(own) > 400


def test_every_gauge_has_a_rule_on_purpose(service: Service) -> None:
    kinds = {metric.name: metric.type for metric in service.metrics.registry.collect()}
    gauges = {name for name, kind in kinds.items() if kind == "gauge"}
    assert set(kinds.values()) == {"gauge", "counter", "histogram"}
    assert not RULES.keys() & ADDED
    assert gauges == RULES.keys() | ADDED | {AGREEMENT}


@pytest.mark.parametrize("name", sorted(ADDED))
def test_amounts_are_added_up(name: str) -> None:
    assert shown([snapshot(gauge(name, 3)), snapshot(gauge(name, 4), pid=2)]) == {name: 7}


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"msmlp_effective_threshold"}))
def test_of_levels_and_ages_the_largest_is_shown(name: str) -> None:
    told = [snapshot(gauge(name, value), pid=pid) for pid, value in enumerate((math.nan, 3, 4, 1))]
    assert shown(told) == {name: 4}
    assert math.isnan(shown(told[:1])[name])


def test_one_that_leaves_still_counts_but_shows_no_gauge() -> None:
    totals = Totals()
    totals.update(0, snapshot(gauge("msmlp_connections", 3), counter("msmlp_shed", 5)))
    totals.leave(0)
    totals.update(1, snapshot(gauge("msmlp_connections", 1), counter("msmlp_shed", 1), pid=2))
    totals.update(0, snapshot(gauge("msmlp_connections", 2), counter("msmlp_shed", 7)))
    assert values(totals) == {"msmlp_connections": 1, "msmlp_shed_total": 8}
    totals.retire(0)
    totals.update(0, snapshot(gauge("msmlp_connections", 4), counter("msmlp_shed", 1), pid=3))
    assert values(totals) == {"msmlp_connections": 5, "msmlp_shed_total": 9}


def test_who_comes_where_one_was_dead_as_it_left_shows_its_gauges() -> None:
    totals = Totals()
    totals.update(0, snapshot(gauge("msmlp_connections", 3)))
    totals.retire(0)
    totals.leave(0)  # between two processes, of which the second never came
    totals.arrive(0)
    totals.update(0, snapshot(gauge("msmlp_connections", 4), pid=2))
    assert values(totals) == {"msmlp_connections": 4}


def test_of_thresholds_the_one_most_browned_out_is_shown() -> None:
    name = "msmlp_effective_threshold"
    assert shown([snapshot(gauge(name, 0.7)), snapshot(gauge(name, 0.4), pid=2)]) == {name: 0.4}


def test_series_that_only_some_processes_have_are_there_in_one_family() -> None:
    told = []
    for pid, routes in enumerate((["/a"], ["/b", "/a"])):
        family = HistogramMetricFamily("msmlp_request_seconds", "Arrival to answer.", labels=["route"])
        for route in routes:
            family.add_metric([route], buckets=[("0.1", 1 + pid), ("+Inf", 5)], sum_value=2.5)
        told.append(snapshot(family, counter("msmlp_shed", 1), pid=pid))
    totals = Totals()
    for index, each in enumerate(told):
        totals.update(index, each)
    assert totals.render().decode().splitlines() == [
        "# HELP msmlp_request_seconds Arrival to answer.",
        "# TYPE msmlp_request_seconds histogram",
        'msmlp_request_seconds_bucket{le="0.1",route="/a"} 3.0',
        'msmlp_request_seconds_bucket{le="+Inf",route="/a"} 10.0',
        'msmlp_request_seconds_count{route="/a"} 10.0',
        'msmlp_request_seconds_sum{route="/a"} 5.0',
        'msmlp_request_seconds_bucket{le="0.1",route="/b"} 2.0',
        'msmlp_request_seconds_bucket{le="+Inf",route="/b"} 5.0',
        'msmlp_request_seconds_count{route="/b"} 5.0',
        'msmlp_request_seconds_sum{route="/b"} 2.5',
        "# HELP msmlp_shed_total A counter.",
        "# TYPE msmlp_shed_total counter",
        "msmlp_shed_total 2.0",
    ]


def test_agreement_is_that_of_all_newest_shadows() -> None:
    def told(pid: int, agreed: int, number: int) -> Snapshot:
        family = GaugeMetricFamily(AGREEMENT, "Agreement.", labels=["exit"])
        family.add_metric(["1"], agreed / number if number else math.nan)
        return snapshot(family, pid=pid, shadows={1: (agreed, number)} if number else {})

    one, other, new = told(1, 1, 1), told(2, 0, 9), told(3, 0, 0)
    assert shown([one, other, new]) == {f"{AGREEMENT} exit=1": 0.1}
    assert math.isnan(shown([new])[f"{AGREEMENT} exit=1"])


def test_agreement_counts_the_shadows_that_the_metrics_hold(service: Service) -> None:
    one = snapshot_of(service)
    shares = {exit: agreed / number for exit, (agreed, number) in one.shadows.items()}
    assert shares
    now = shown([one])
    assert shares == {exit: now[f"{AGREEMENT} exit={exit}"] for exit in shares}


def test_what_the_caller_adds_counts_as_another_process() -> None:
    totals = Totals()
    own = [counter("msmlp_frontend_restarts", 3), gauge("process_open_fds", 5)]
    assert values(totals, own) == {"msmlp_frontend_restarts_total": 3, "process_open_fds": 5}
    totals.update(0, snapshot(gauge("process_open_fds", 7), counter("msmlp_shed", 1)))
    assert values(totals, own) == {"msmlp_frontend_restarts_total": 3, "process_open_fds": 12, "msmlp_shed_total": 1}
    assert values(totals, own) == values(totals, own)


def test_a_process_that_died_leaves_its_counts_and_no_gauge() -> None:
    totals = Totals()
    last = snapshot(counter("msmlp_shed", 5), gauge("msmlp_inflight_images", 4))
    totals.update(0, last)
    totals.retire(0)
    totals.retire(0)
    totals.retire(7)
    assert values(totals) == {"msmlp_shed_total": 5}
    totals.update(0, last)  # that was on its way
    assert values(totals) == {"msmlp_shed_total": 5}
    totals.update(0, snapshot(counter("msmlp_shed", 1), gauge("msmlp_inflight_images", 2), pid=2))
    assert values(totals) == {"msmlp_shed_total": 6, "msmlp_inflight_images": 2}


def test_an_older_snapshot_does_not_replace_a_newer_one() -> None:
    totals = Totals()
    older, newer = snapshot(counter("msmlp_shed", 5)), snapshot(counter("msmlp_shed", 6))
    totals.update(0, newer)
    totals.update(0, older)
    assert values(totals) == {"msmlp_shed_total": 6}


def test_of_an_engine_that_is_away_the_counters_stay() -> None:
    totals = Totals()
    name = "msmlp_engine_process_cpu_seconds"
    gone = "msmlp_engine_process_open_fds"
    totals.update(0, snapshot(counter(name, 8), gauge(gone, 5)))
    totals.update(0, snapshot())
    assert values(totals) == {f"{name}_total": 8}
    totals.update(0, snapshot(counter(name, 1), gauge(gone, 6)))
    assert values(totals) == {f"{name}_total": 9, gone: 6}


def test_the_callers_own_counters_go_on_when_what_they_count_begins_anew() -> None:
    totals, name = Totals(shared_engine=True), "msmlp_engine_process_cpu_seconds"

    def shown(seconds: float) -> str:
        return totals.render([counter(name, seconds)]).decode().splitlines()[-1].rpartition(" ")[2]

    assert [shown(seconds) for seconds in (100, 0.5, 5, 20)] == ["100.0", "100.5", "105.0", "120.0"]


def test_of_a_shared_engines_state_its_host_knows_best() -> None:
    totals = Totals(shared_engine=True)
    totals.update(0, snapshot(gauge("msmlp_engines", 1)))
    assert b"msmlp_engines 0.0" in totals.render([gauge("msmlp_engines", 0)])


def test_the_share_in_use_of_engines_side_by_side_is_their_mean() -> None:
    totals = Totals(number=2)
    for index, work in enumerate((60, 30)):
        totals.update(index, snapshot(counter("msmlp_work_seconds", work)))
    assert values(totals) == {"msmlp_work_seconds_total": 45}
    totals.retire(0)
    assert values(totals) == {"msmlp_work_seconds_total": 45}


class Front:
    """A process that uses an engine which others use as well."""

    def __init__(self, totals: Totals, index: int) -> None:
        self.totals, self.index, self.pid = totals, index, next(times)

    def sees(self, work: float, **gauges: float) -> float:
        """The total that is shown once this process has told that it sees this."""
        own = [gauge(name, value) for name, value in gauges.items()]
        self.totals.update(self.index, snapshot(counter("msmlp_work_seconds", work), *own, pid=self.pid))
        return values(self.totals)["msmlp_work_seconds_total"]


def test_what_a_shared_engine_has_is_counted_once() -> None:
    totals = Totals(shared_engine=True)
    first, second = Front(totals, 0), Front(totals, 1)
    first.sees(40, msmlp_queue_images=7, msmlp_capacity_images=64, msmlp_inflight_images=3)
    second.sees(41, msmlp_queue_images=6, msmlp_capacity_images=64, msmlp_inflight_images=5)
    assert values(totals) == {
        "msmlp_work_seconds_total": 41,
        "msmlp_queue_images": 7,
        "msmlp_capacity_images": 64,
        "msmlp_inflight_images": 8,
    }


def test_the_work_of_a_shared_engine_goes_on_over_restarts_of_engine_and_processes() -> None:
    totals = Totals(shared_engine=True)
    first, second = Front(totals, 0), Front(totals, 1)
    assert first.sees(100) == 100
    assert second.sees(99) == 100, "it looked a little earlier"
    assert first.sees(0) == 100, "the engine died"
    assert second.sees(0) == 100
    assert first.sees(2) == 102, "another one runs"
    assert second.sees(4) == 104
    third = Front(totals, 2)
    assert third.sees(0) == 104, "it sees no engine yet"
    assert third.sees(5) == 104, "what it sees is counted already"
    totals.retire(0)
    totals.retire(1)
    assert values(totals)["msmlp_work_seconds_total"] == 104
    assert third.sees(9) == 108
    assert third.sees(0) == 108, "it was cut off"
    assert third.sees(10) == 109, "from an engine that lived on"


def test_restarts_of_the_engines_after_a_reload_are_added_to_those_before() -> None:
    totals = Totals(shared_engine=True)
    shown = [values(totals, [counter("msmlp_engine_restarts", hosts)]) for hosts in (1, 0, 1, 2)]
    assert [each["msmlp_engine_restarts_total"] for each in shown] == [1, 1, 2, 3]


def test_statistics_are_added_up_and_survive_a_process() -> None:
    class Counted:
        def __init__(self, *records: RequestRecord, executions: int) -> None:
            self.metrics, self.statistics = Metrics([0.1, 0.2], "name", "1"), Statistics()
            self.metrics.executions = executions
            for record in records:
                self.statistics.ended(record)

    def record(status: int, seconds: float) -> RequestRecord:
        return RequestRecord("id", 0.0, "POST", "/classify", status=status, ended=seconds, queue_seconds=0.25)

    totals = Totals()
    one = Counted(record(200, 0.5), record(503, 2.0), executions=3)
    taken = snapshot_of(one)
    one.statistics.ended(record(200, 100.0))  # which the snapshot does not know
    totals.update(0, taken)
    last = taken.statistics.document("name", "1", 3)["last_inference"]
    other = Counted(record(200, 1.5), executions=4)
    totals.update(1, snapshot_of(other))

    def check() -> None:
        document = totals.statistics().document("name", "1", totals.executions)
        stats = document["inference_stats"]
        assert (document["execution_count"], document["last_inference"] >= last > 0) == (7, True)
        assert stats["success"] == {"count": 2, "ns": 2_000_000_000}
        assert stats["fail"] == {"count": 1, "ns": 2_000_000_000}
        assert stats["queue"] == {"count": 2, "ns": 500_000_000}

    check()
    check()
    totals.retire(0)
    check()


@dataclass
class Living:
    pid: int
    shed: int = 0
    seconds: float = 0.0
    work: float = 0.0
    told: Snapshot | None = None


class Lives(RuleBasedStateMachine):
    """Processes that count, die and are replaced, and engines that begin again, against a plain sum."""

    def __init__(self) -> None:
        super().__init__()
        self.totals = Totals()
        self.living: dict[int, Living] = {}
        self.pids = count(1)
        self.shed = self.seconds = self.work = 0.0
        self.before: dict[str, float] = {}

    @rule(
        index=st.integers(0, 2),
        shed=st.integers(0, 9),
        seconds=st.floats(0, 1e3),
        work=st.integers(0, 9),
        new=st.booleans(),
    )
    def work_on(self, index: int, shed: int, seconds: float, work: int, new: bool) -> None:
        """A process, that is there or comes (in place of another, whose death nobody told), counts and tells."""
        if new or index not in self.living:
            self.living[index] = Living(next(self.pids))
        process = self.living[index]
        process.shed, process.seconds, process.work = (
            process.shed + shed,
            process.seconds + seconds,
            process.work + work,
        )
        self.shed, self.seconds, self.work = self.shed + shed, self.seconds + seconds, self.work + work
        self.tell(index)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def engine_begins_again(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.living)))
        self.living[index].work = 0
        self.tell(index)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), late=st.booleans())
    def die(self, data: st.DataObject, late: bool) -> None:
        index = data.draw(st.sampled_from(sorted(self.living)))
        told = self.living.pop(index).told
        self.totals.retire(index)
        if late and told:
            self.totals.update(index, told)

    def tell(self, index: int) -> None:
        process = self.living[index]
        process.told = snapshot(
            counter("msmlp_shed", process.shed),
            counter("msmlp_gflops", process.seconds),
            counter("msmlp_work_seconds", process.work),
            gauge("msmlp_inflight_images", index),
            pid=process.pid,
        )
        self.totals.update(index, process.told)

    @invariant()
    def sums_are_those_of_all_and_never_fall(self) -> None:
        now = values(self.totals)
        assert all(now[name] >= value for name, value in self.before.items())
        assert now.get("msmlp_shed_total", 0) == self.shed
        assert now.get("msmlp_gflops_total", 0) == pytest.approx(self.seconds)
        assert now.get("msmlp_work_seconds_total", 0) == self.work
        assert now.get("msmlp_inflight_images") == (sum(self.living) if self.living else None)
        self.before = {name: value for name, value in now.items() if name.endswith("_total")}


TestLives = Lives.TestCase


@pytest.mark.parametrize("order", list(permutations((0.1, 0.2, 0.3, 0.7))))
def test_rounding_does_not_depend_on_the_order(order: tuple[float, ...]) -> None:
    name = "msmlp_throughput_images_per_second"
    assert shown([snapshot(gauge(name, value), pid=pid) for pid, value in enumerate(order)]) == {name: 1.3}


counts = st.lists(st.integers(0, 100), min_size=1, max_size=4)


@given(told=st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=5), data=st.data(), shared=st.booleans())
def test_the_order_of_processes_does_not_matter(
    told: list[tuple[list[int], bool]], data: st.DataObject, shared: bool
) -> None:
    """Each process tells what it has counted, and may die then; others do so meanwhile."""
    events = [index for index, (amounts, dies) in enumerate(told) for _ in range(len(amounts) + dies)]

    def run(order: Iterable[int]) -> dict[str, float]:
        totals = Totals(shared_engine=shared)
        left = [iter(amounts) for amounts, _ in told]
        for index in order:
            if (amount := next(left[index], None)) is None:
                totals.retire(index)
            else:
                family = counter("msmlp_shed", amount / 8)
                totals.update(index, snapshot(family, gauge("msmlp_queue_images", amount), pid=index))
        return values(totals)

    assert run(data.draw(st.permutations(events))) == run(events)
