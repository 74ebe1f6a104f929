"""Metrics against traffic whose every number is known: a fake backend answers what the pictures say."""

import gc
import json
import math
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from msmlp.model.exits.rule import Reason
from msmlp.service.engine import core as loop
from msmlp.service.engine.messages import Failed, Ran
from msmlp.service.errors import CLIENT_CLOSED_REQUEST
from msmlp.service.http.middleware import ROUTES
from msmlp.service.options import RequestOptions
from msmlp.service.service import Service
from msmlp.service.telemetry.metrics import AT_MOST, PHASES, RELOADS, SCORES, LabelledHistogram, Metrics
from msmlp.service.telemetry.record import RPC, STREAM, RequestRecord
from tests.fakes import PATIENCE_SECONDS, Clock, FakeBackend, picture
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def running(tiny_weights: Path) -> Iterator[tuple[httpx.Client, Service, FakeBackend]]:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    with serving(service) as client:
        yield client, service, backend


def scrape(client: httpx.Client) -> Samples:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples) -> Samples:
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


def send(client: httpx.Client, *pictures: tuple[float, ...], **options: object) -> httpx.Response:
    files = [("images", encoded(picture(*scores, size=32))) for scores in pictures]
    return client.post("/classify", files=files, params={"thresholds": "0.5,0.5", **options})


def key(metric: str, **labels: object) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"msmlp_{metric}", tuple(sorted((label, str(value)) for label, value in labels.items()))


def test_confidences_fall_into_their_buckets(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, _, _ = running
    before = scrape(client)
    assert send(client, (0.52,), (0.98,), (0.98,)).status_code == 200
    change = grown(before, scrape(client))
    for edge in SCORES:
        expected = 0 if edge < 0.52 else 1 if edge < 0.98 else 3
        assert change.get(key("confidence_bucket", exit=1, le=edge), 0) == expected


def test_what_calibration_expects_is_counted(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, _, _ = running
    before, expected = scrape(client), 0.0
    for options in ({}, {"thresholds": "0.9,0.1"}, {"max_exit": 1}):
        answer = send(client, (1.0,), (0.2, 0.8), **options).json()
        expected += 2 * answer["operating_point"]["expected_gflops"]
    streamed = send(client, (1.0,), (0.2, 0.8), stream="true").text.splitlines()
    points = [line["operating_point"] for line in map(json.loads, streamed) if line["final"]]
    expected += sum(point["expected_gflops"] for point in points)
    assert len(points) == 2
    assert grown(before, scrape(client))[key("gflops_expected_total")] == pytest.approx(expected)


def test_gauges_of_an_idle_service(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        now = scrape(client)
    assert now[key("capacity_images")] == 1024
    assert now[key("inflight_images")] == 0
    assert now[key("engine_up")] == 1
    assert [now[key("queue_images", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert [now[key("oldest_wait_seconds", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert [now[key("effective_threshold", exit=k)] for k in (1, 2)] == service.operating_points.resolve(
        RequestOptions()
    ).parameters.thresholds.tolist()
    assert now[key("throughput_images_per_second")] >= 0
    assert 1 <= now[key("prediction_margin_ratio")] <= 3
    assert now[key("model_info", **service.facts.model, backend="fake", device="none")] == 1


def test_no_client_can_make_a_new_label_value(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, _, _ = running
    send(client, (1.0,))
    client.get("/nowhere")
    client.put("/model")
    known = {(name, tuple(label for label, _ in labels)) for name, labels in scrape(client)}
    series = len(scrape(client))
    for number in range(20):
        client.get(f"/nowhere-{number}", headers={"X-Request-ID": f"id-{number}"})
        client.request(f"VERB{number}", "/model")
        client.post("/classify", params={f"option{number}": "1"}, content=b"x", headers={"Content-Type": "image/png"})
        send(client, (1.0,), policy=f"policy-{number}", thresholds="")
    after = scrape(client)
    assert {(name, tuple(label for label, _ in labels)) for name, labels in after} == known
    values = {value for _, labels in after for label, value in labels if label != "le"}
    assert not [value for value in values if "-1" in value or "VERB" in value or "option" in value]
    # At most the two answers that had not been given before, 422 and 405 of a route, may have added series.
    assert len(after) - series <= 4


CONTRACT: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests_total": ("counter", ("route", "status")),
    "request_seconds": ("histogram", ("route",)),
    "images_total": ("counter", ("exit", "reason")),
    "image_seconds": ("histogram", ("exit",)),
    "stage_queue_seconds": ("histogram", ("stage",)),
    "stage_compute_seconds": ("histogram", ("stage",)),
    "stage_batch_size": ("histogram", ("stage",)),
    "queue_images": ("gauge", ("stage",)),
    "oldest_wait_seconds": ("gauge", ("stage",)),
    "inflight_images": ("gauge", ()),
    "capacity_images": ("gauge", ()),
    "backlog_seconds": ("gauge", ()),
    "decode_seconds": ("histogram", ("format",)),
    "decode_backlog_seconds": ("gauge", ()),
    "loop_lag_seconds": ("gauge", ()),
    "body_work": ("gauge", ()),
    "work_seconds_total": ("counter", ()),
    "exit_gflops": ("gauge", ("exit",)),
    "confidence": ("histogram", ("exit",)),
    "gflops_total": ("counter", ()),
    "gflops_saved_total": ("counter", ()),
    "gflops_expected_total": ("counter", ()),
    "effective_threshold": ("gauge", ("exit",)),
    "brownout_level": ("gauge", ()),
    "shed_total": ("counter", ("reason",)),
    "connections": ("gauge", ()),
    "capacity_connections": ("gauge", ()),
    "connections_refused_total": ("counter", ()),
    "timeouts_total": ("counter", ("phase",)),
    "shadow_agreement": ("gauge", ("exit",)),
    "cancelled_total": ("counter", ("where",)),
    "deadline_total": ("counter", ("outcome",)),
    "deadline_margin_seconds": ("histogram", ()),
    "prediction_margin_ratio": ("gauge", ()),
    "throughput_images_per_second": ("gauge", ()),
    "engine_up": ("gauge", ()),
    "engines": ("gauge", ("state",)),
    "engine_restarts_total": ("counter", ()),
    "engine_heartbeat_age_seconds": ("gauge", ()),
    "invalid_scores_total": ("counter", ()),
    "model_info": ("gauge", ("name", "version", "backend", "device")),
}
"""Every metric with its type and labels: names that dashboards rely on."""

EXITS = ("1", "2", "3")
STATUSES = ("200", "429", "499", "500", "503", "504")
ROUTES_THAT_CLASSIFY = ("/classify", "/v2/models/{name}/infer", "grpc/ModelInfer", "grpc/ModelStreamInfer")
SERIES = {
    "requests_total": [{"route": route, "status": status} for route in ROUTES_THAT_CLASSIFY for status in STATUSES],
    "request_seconds_count": [{"route": route} for route in ROUTES_THAT_CLASSIFY],
    "images_total": [
        *({"exit": exit, "reason": reason} for exit in "12" for reason in ("confident", "max_exit", "deadline")),
        {"exit": "3", "reason": "final"},
        {"exit": "none", "reason": "expired"},
    ],
    "timeouts_total": [{"phase": phase} for phase in PHASES],
    "cancelled_total": [{"where": where} for where in ("decode", "queue", "batch")],
    "deadline_total": [{"outcome": outcome} for outcome in ("met", "late", "cut_short", "expired")],
    "shed_total": [
        {"reason": "capacity"},
        {"reason": "wait"},
        {"reason": "door"},
        {"reason": "memory"},
        {"reason": "key"},
    ],
    "deadline_margin_seconds_count": [{}],
    "invalid_scores_total": [{}],
    "decode_seconds_count": [{"format": kind} for kind in ("png", "jpeg", "webp", "bmp", "gif", "avif", "pixels")],
    "gflops_total": [{}],
    "gflops_saved_total": [{}],
    "gflops_expected_total": [{}],
    "confidence_count": [{"exit": exit} for exit in EXITS],
    "image_seconds_count": [{"exit": exit} for exit in (*EXITS, "none")],
    **{
        f"stage_{name}_count": [{"stage": stage} for stage in EXITS]
        for name in ("queue_seconds", "compute_seconds", "batch_size")
    },
}
"""Every known series; all are there from the first scrape."""


def test_every_metric_of_the_contract_is_there_from_the_first_scrape(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        text = client.get("/metrics").text
        client.get("/livez")
        now = scrape(client)
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    for name, (kind, labels) in CONTRACT.items():
        assert kinds[f"msmlp_{name.removesuffix('_total')}"] == kind
        assert name.endswith("_total") == (kind == "counter")
        sample = f"msmlp_{name}_count" if kind == "histogram" else f"msmlp_{name}"
        found = {tuple(sorted(label for label, _ in has)) for metric, has in now if metric == sample}
        assert found == {tuple(sorted(labels))}, name
    for name, series in SERIES.items():
        values = {labels: value for (metric, labels), value in now.items() if metric == f"msmlp_{name}"}
        for asked in ("/livez", "/metrics"):  # meanwhile
            values = {labels: value for labels, value in values.items() if ("route", asked) not in labels}
        assert values == {key("", **labels)[1]: 0 for labels in series}, name
    agreement = [now[key("shadow_agreement", exit=exit)] for exit in "12"]
    assert all(math.isnan(value) for value in agreement), "unknown is not zero"


EASY, HARD, HARDEST, UNSURE = (
    picture(1.0, 1.0, 1.0, label=(4, 4, 5), size=32),  # the last exit will not agree
    picture(0.2, 0.9, 0.9, label=6, size=32),
    picture(0.4, 0.4, 0.6, label=7, size=32),
    picture(0.4, 0.4, 0.4, label=8, size=32),
)
BROKEN = 9
"""A picture with this label breaks the device."""


class Traffic:
    """What was sent to a service and what came back, for its metrics to be compared with."""

    def __init__(self, client: httpx.Client) -> None:
        self._client, self._lock = client, threading.Lock()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images: Counter[tuple[str, str]] = Counter()
        self.sums: dict[tuple[str, str], float] = defaultdict(float)

    def call(self, method: str, path: str, expected: int, **request: Any) -> httpx.Response:
        answer = self._client.request(method, path, **request)
        assert answer.status_code == expected, answer.text
        with self._lock:
            self.requests[path if path in ROUTES else "other", expected] += 1
        return answer

    def classify(self, *images: NDArray[np.uint8], expected: int = 200, **options: Any) -> None:
        given = {"params": {"thresholds": "0.5,0.5", **options}}
        files = [("images", encoded(image)) for image in images]
        answer = self.call("POST", "/classify", expected, files=files, **given)
        if expected == 200 and "stream" in options:
            lines = [json.loads(line) for line in answer.text.splitlines()]
            self.note([line for line in lines if line["final"]])
        elif expected == 200:
            self.note(answer.json()["results"])

    def note(self, results: list[dict[str, Any]]) -> None:
        with self._lock:
            for result in results:
                exit = str(result["exit"] or "none")
                self.images[exit, result["reason"]] += 1
                self.sums["image_seconds", exit] += result["latency_ms"] / 1e3
                self.sums["confidence", exit] += result["confidence"] or 0.0
                for stage in result["stages"]:
                    self.sums["stage_queue_seconds", str(stage["stage"])] += stage["queue_ms"] / 1e3

    def mixed(self) -> list[Callable[[], None]]:
        """One of everything that needs nothing held."""
        three = (EASY, HARD, HARDEST)
        png = {"headers": {"Content-Type": "image/png"}}
        odd = "/" + "ünlikely/" * 3
        return [
            lambda: self.classify(*three),
            lambda: self.classify(*three, stream="true"),
            lambda: self.classify(UNSURE, HARD, max_exit=1),
            lambda: self.classify(picture(1.0, 1.0, 1.0, label=3, size=32), min_exit=2),
            lambda: self.classify(*three, deadline_ms=1e9),
            lambda: self.classify(EASY, UNSURE, deadline_ms=0, expected=504),
            lambda: self.classify(UNSURE, deadline_ms=0, min_exit=1),
            lambda: self.classify(EASY, policy="x" * 40, thresholds="0.1", expected=422),
            lambda: self.classify(EASY, **{"no\nsuch": "option"}, expected=422),
            lambda: self.call("POST", "/classify", 422, content=b"x", **png) and None,
            lambda: self.call("POST", "/classify", 415, content=b"x", headers={"Content-Type": "x/y"}) and None,
            lambda: self.call("GET", odd, 404, headers={"X-Request-ID": "odd\tid"}) and None,
            lambda: self.call("BREW", "/model", 405) and None,
            lambda: self.call("GET", "/model", 200) and None,
        ]


def test_every_counter_and_sum_is_the_traffics(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed traffic from eight threads; then what can only be told apart with the device or the decoders held."""
    clock, backend = Clock(), fake_backend(capacity=128, max_batch=4)
    monkeypatch.setattr(loop, "time", clock)
    service = fake_service(tiny_weights, lambda: backend, capacity=96, shadow=1, decode_threads=2)

    def breaks(stage: int, pixels: NDArray[np.uint8]) -> None:
        if (pixels[:, 1, 0, 1] == BROKEN).any():
            raise ZeroDivisionError

    backend.fail = breaks
    with serving(service) as client:
        traffic = Traffic(client)
        backend.batches.clear()
        before = scrape(client)
        jobs = traffic.mixed() * 8
        np.random.default_rng(0).shuffle(jobs)  # type: ignore[arg-type]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda job: job(), jobs))
        rest(service, backend)

        traffic.classify(picture(1.0, label=BROKEN, size=32), expected=503)
        with service.engine.admit(96):
            for _ in range(3):
                traffic.classify(EASY, EASY, expected=429)
        leave(client, traffic, service, backend)
        rest(service, backend)
        cut_short(client, traffic, backend, clock)
        rest(service, backend)
        wait_until(lambda: grown(before, scrape(client)).get(key("requests_total", route="/classify", status=499)) == 2)
        after = scrape(client)
    compare(traffic, service, backend, before, after)


def rest(service: Service, backend: FakeBackend) -> None:
    """Until nothing is in flight, shadows included."""
    wait_until(lambda: service.engine.admission.inflight == backend.taken == 0)


def leave(client: httpx.Client, traffic: Traffic, service: Service, backend: FakeBackend) -> None:
    """Two clients leave: one in the engine, with four images running and three waiting, one while it is decoded."""
    files = [("images", encoded(EASY))] * 7
    with backend.gate.held():
        with knock(client, files=files, params={"thresholds": "0.5,0.5"}):
            backend.gate.wait_until_reached()
            held = scrape(client)
            assert held[key("inflight_images")] == 7
            assert [held[key("queue_images", stage=k)] for k in (1, 2, 3)] == [3, 0, 0]
            assert held[key("oldest_wait_seconds", stage=1)] > 0 == held[key("oldest_wait_seconds", stage=2)]
        wait_until(lambda: service.engine.admission.inflight == 0)
    may_decode = threading.Event()
    blocked = [service.decoders.threads.submit(may_decode.wait, PATIENCE_SECONDS) for _ in range(2)]
    with knock(client, files=files[:2]):
        wait_until(lambda: service.engine.admission.inflight == 2)
    wait_until(lambda: service.engine.admission.inflight == 0)
    may_decode.set()
    assert all(future.result() for future in blocked)
    traffic.requests["/classify", 499] += 2  # whose clients had left


def cut_short(client: httpx.Client, traffic: Traffic, backend: FakeBackend, clock: Clock) -> None:
    """The engine sees the deadline come after the first stage; the answer is on time all the same."""
    with ThreadPoolExecutor(1) as pool, backend.gate.held():
        asked = pool.submit(traffic.classify, UNSURE, deadline_ms=1e9)
        backend.gate.wait_until_reached()
        clock.ahead = 2e6
        backend.gate.open()
        asked.result()


def compare(traffic: Traffic, service: Service, backend: FakeBackend, before: Samples, after: Samples) -> None:
    change = grown(before, after)

    def counts(metric: str, *labels: str) -> dict[tuple[str, ...], float]:
        found = {labels_: value for (name, labels_), value in change.items() if name == f"msmlp_{metric}"}
        return {tuple(dict(have)[label] for label in labels): value for have, value in found.items()}

    requests = {k: v for k, v in counts("requests_total", "route", "status").items() if k[0] != "/metrics"}
    assert requests == {(route, str(status)): n for (route, status), n in traffic.requests.items()}
    by_route: Counter[tuple[str]] = Counter()
    for (route, _), number in traffic.requests.items():
        by_route[(route,)] += number
    assert {k: v for k, v in counts("request_seconds_count", "route").items() if k != ("/metrics",)} == by_route

    images = traffic.images + Counter({("none", "expired"): 16})  # of answers that were 504
    assert set(images) == {(labels["exit"], labels["reason"]) for labels in SERIES["images_total"]} - {
        ("2", "max_exit"),
        ("2", "deadline"),
    }
    assert counts("images_total", "exit", "reason") == images
    by_exit: Counter[str] = Counter()
    for (exit, _), number in images.items():
        by_exit[exit] += number
    assert counts("image_seconds_count", "exit") == {(exit,): n for exit, n in by_exit.items()}
    answered = {(exit,): n for exit, n in by_exit.items() if exit != "none"}
    assert counts("confidence_count", "exit") == answered
    reached = {(k,): sum(n for exit, n in by_exit.items() if exit != "none" and exit >= k) for k in EXITS}
    assert counts("stage_queue_seconds_count", "stage") == reached
    for metric in ("confidence", "stage_queue_seconds", "image_seconds"):
        label = "stage" if metric.startswith("stage") else "exit"
        for (value,), total in counts(f"{metric}_sum", label).items():
            if value != "none":  # they have no answer to compare with
                assert total == pytest.approx(traffic.sums[metric, value], rel=1e-3, abs=1e-3), (metric, value)

    ran = {(k,): [n for stage, n in backend.batches if stage == int(k) - 1] for k in EXITS}
    assert counts("stage_batch_size_sum", "stage") == {k: sum(sizes) for k, sizes in ran.items()}
    assert counts("stage_batch_size_count", "stage") == {k: len(sizes) for k, sizes in ran.items()}
    assert counts("stage_compute_seconds_count", "stage") == {k: len(sizes) for k, sizes in ran.items()}
    assert all(total > 0 for total in counts("stage_compute_seconds_sum", "stage").values())

    cost = service.facts.gflops
    spent = sum(n * (0.0 if exit == "none" else cost[int(exit) - 1]) for exit, n in by_exit.items())
    assert change[key("gflops_total")] == pytest.approx(spent)
    assert change[key("gflops_total")] + change[key("gflops_saved_total")] == pytest.approx(
        sum(by_exit.values()) * cost[-1]
    )
    assert counts("shed_total", "reason") == {("capacity",): 6}
    assert counts("cancelled_total", "where") == {("batch",): 4, ("queue",): 3, ("decode",): 2}
    assert counts("deadline_total", "outcome") == {("expired",): 16, ("late",): 8, ("met",): 24, ("cut_short",): 1}
    assert change[key("deadline_margin_seconds_count")] == 16 + 8 + 24 + 1
    assert change[key("deadline_margin_seconds_bucket", le="0.0")] == 16 + 8, "late or expired"
    assert after[key("shadow_agreement", exit=1)] == 0
    assert after[key("shadow_agreement", exit=2)] == 1
    at_rest = {"inflight_images": 0, "capacity_images": 96, "brownout_level": 0, "engine_up": 1}
    assert {name: after[key(name)] for name in at_rest} == at_rest
    assert [after[key("queue_images", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert [after[key("oldest_wait_seconds", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert after[key("throughput_images_per_second")] > 0
    check_labels(after, service)


def check_labels(samples: Samples, service: Service) -> None:
    """Every value of every label is one the code knows."""
    known = {
        "route": {*ROUTES, *ROUTES_THAT_CLASSIFY, "other"},
        "status": {str(int(status)) for status in HTTPStatus} | {str(CLIENT_CLOSED_REQUEST)},
        "exit": {*EXITS, "none"},
        "stage": set(EXITS),
        "format": {"png", "jpeg", "webp", "bmp", "gif", "avif", "pixels"},
        "reason": {*(reason.name.lower() for reason in Reason), "capacity", "wait", "door", "memory", "key"},
        "where": {"decode", "queue", "batch"},
        "phase": set(PHASES),
        "state": {"up", "restarting", "out"},
        "outcome": {"met", "late", "cut_short", "expired", *RELOADS},
        "name": {service.facts.model["name"]},
        "version": {service.facts.model["version"]},
        "backend": {"fake"},
        "device": {"none"},
    }
    for name, labels in samples:
        for label, value in labels:
            assert label == "le" or value in known[label], (name, label, value)


def test_engines_in_processes_are_counted_by_state_with_their_restarts_and_resources() -> None:
    metrics = Metrics((0.1, 0.2, 0.3), "a name", "a version")
    shown = metrics.registry.get_sample_value
    assert shown("msmlp_engine_restarts_total") == 0
    assert shown("msmlp_engine_process_resident_memory_bytes") is None
    own = os.getpid()
    engines = SimpleNamespace(states=["up", "out", "up"], restarts=4, pids=[own, own], cpu_seconds={1: 1000.0})
    metrics.watch_engines(engines)
    states = [shown("msmlp_engines", {"state": state}) for state in ("up", "restarting", "out")]
    assert (states, shown("msmlp_engine_restarts_total")) == ([2, 0, 1], 4)
    one = shown("process_resident_memory_bytes")
    assert one is not None
    assert shown("msmlp_engine_process_resident_memory_bytes") == pytest.approx(2 * one, rel=0.1)
    assert shown("msmlp_engine_process_start_time_seconds") == shown("process_start_time_seconds")
    cpu = shown("msmlp_engine_process_cpu_seconds_total")
    assert cpu == pytest.approx(1000 + (shown("process_cpu_seconds_total") or 0), abs=1), "with one that has ended"
    engines.pids = []
    assert shown("msmlp_engine_process_resident_memory_bytes") is None


def test_a_stream_is_counted_but_its_life_is_not_a_latency() -> None:
    metrics = Metrics((0.1, 0.2, 0.3), "a name", "a version")
    labels = {"route": "grpc/ModelStreamInfer"}
    for method in (STREAM, RPC):
        metrics.ended(RequestRecord("id", 0.0, method, labels["route"], status=408, ended=60.0))
    shown = metrics.registry.get_sample_value
    assert shown("msmlp_requests_total", {**labels, "status": "408"}) == 2
    assert shown("msmlp_request_seconds_count", labels) == 1


def test_images_an_engine_had_no_slots_for_are_shed() -> None:
    metrics = Metrics((0.1, 0.2, 0.3), "a name", "a version")
    metrics.observe(Failed(np.array([7]), "the service is full", shed=5))
    metrics.observe(Failed(np.array([8]), "the device failed"))
    assert metrics.registry.get_sample_value("msmlp_shed_total", {"reason": "capacity"}) == 5


# --- gauges of a service on a fake backend that can be held ----------------------------------------------------------


def value(client: httpx.Client, series: str) -> float:
    """What one series shows now."""
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
    return float(line.split()[-1])


def test_the_backlog_is_predicted_while_a_request_is_held(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    files = [("images", encoded(picture(0.1, 0.2, 0.3, size=32)))] * 4
    with serving(service) as client:
        assert value(client, "msmlp_backlog_seconds") == 0
        with backend.gate.held(), knock(client, files=files, params={"thresholds": "1,1"}):
            backend.gate.wait_until_reached()
            load = service.engine.worker.load
            assert load is not None
            assert value(client, "msmlp_backlog_seconds") == load.backlog_seconds > 0
        wait_until(lambda: value(client, "msmlp_backlog_seconds") == 0)


def test_work_is_what_full_batches_would_have_taken(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    files = [("images", encoded(picture(0.1, 0.2, 0.3, size=32)))] * 4
    with serving(service) as client:
        assert value(client, "msmlp_work_seconds_total") == 0
        grown = []
        for _ in range(2):
            before = value(client, "msmlp_work_seconds_total")
            assert client.post("/classify", files=files, params={"thresholds": "1,1"}).status_code == 200
            wait_until(lambda: value(client, "msmlp_backlog_seconds") == 0)
            grown.append(value(client, "msmlp_work_seconds_total") - before)
        load = service.engine.worker.load
        assert load is not None
        assert value(client, "msmlp_work_seconds_total") == load.work_seconds
    assert min(grown) > 0


def test_every_exit_has_its_price(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        for exit, gflops in enumerate(service.facts.gflops, start=1):
            assert value(client, f'msmlp_exit_gflops{{exit="{exit}"}}') == gflops


def test_the_process_says_what_it_uses(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        assert value(client, "process_resident_memory_bytes") > 2**20
        assert value(client, "process_virtual_memory_bytes") > value(client, "process_resident_memory_bytes")
        cpu = sum(os.times()[:2])
        assert 0 < value(client, "process_cpu_seconds_total") < cpu + 1
        assert 0 < value(client, "process_open_fds") < value(client, "process_max_fds")
        assert value(client, "process_start_time_seconds") > 1.6e9


def test_what_nobody_scrapes_is_not_kept_for_ever() -> None:
    """As with msmlp.load, which has no requests that end."""
    metrics, size = Metrics([0.1, 0.2], "name", "1"), 100 * AT_MOST
    for _ in range(size):
        metrics.observe(Ran(0, 1, 0.001))
    kept = sum(isinstance(each, Ran) for each in gc.get_objects())
    assert kept <= AT_MOST
    assert b'msmlp_stage_batch_size_count{stage="1"} %.1f' % size in metrics.render()


# --- histograms against the library's own ----------------------------------------------------------------------------


BOUNDS = (0.05, 0.5, 1.0, 20.0)
VALUES = (1, 2, "none")


def both() -> tuple[LabelledHistogram, CollectorRegistry, Histogram, CollectorRegistry]:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    ours = LabelledHistogram("some_seconds", "Some.", "exit", VALUES, bounds=BOUNDS, registry=mine)
    library = Histogram("some_seconds", "Some.", ["exit"], buckets=BOUNDS, registry=theirs)
    for value in VALUES:
        library.labels(value)
    return ours, mine, library, theirs


def test_before_any_observation_every_count_is_zero() -> None:
    _, mine, _, theirs = both()
    assert generate_latest(mine) == generate_latest(theirs)
    assert b'some_seconds_bucket{exit="none",le="+Inf"} 0.0' in generate_latest(mine)


# Quarters and edges: sums are exact, whatever the order.
amounts = st.sampled_from((-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 20.0, 20.25, 1e9))


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), amounts)), max_size=5))
def test_the_text_is_the_librarys(batches: list[list[tuple[int, float]]]) -> None:
    ours, mine, library, theirs = both()
    for batch in batches:
        ours.observe(np.array([row for row, _ in batch], np.int64), np.array([amount for _, amount in batch]))
        for row, amount in batch:
            library.labels(VALUES[row]).observe(amount)
    assert generate_latest(mine).splitlines() == generate_latest(theirs).splitlines()


def test_minus_one_is_the_last_value() -> None:
    ours, mine, _, _ = both()
    ours.observe(np.array([-1]), np.array([0.25]))
    assert mine.get_sample_value("some_seconds_count", {"exit": "none"}) == 1
    assert mine.get_sample_value("some_seconds_sum", {"exit": "none"}) == 0.25
