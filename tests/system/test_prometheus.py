"""A real Prometheus beside `make serve`: it says what the load generator counted; every panel and alert has data."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.core import CounterMetricFamily

from msmlp.model.data import load_dataset
from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import RequestRecord, Statistics
from msmlp.service.telemetry.totals import Snapshot, Totals
from tests.fakes import PATIENCE_SECONDS
from tests.processes import LAYOUTS, Served
from tests.servers import encoded
from tests.system.conftest import make_serve
from tests.system.prometheus import CONFIGURATION, Prometheus, Values, prometheus, promtool
from tests.system.traffic import CAPACITY, Tally, drive, kinds_for

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "msmlp.json").read_text())
PAGE = (ROOT / "docs" / "operations.md").read_text()
LOAD_SECONDS = 8


@dataclass(frozen=True)
class Watched:
    """A service under load, between two scrapes (their times) at which it had nothing to do."""

    service: httpx.Client
    prometheus: Prometheus
    tally: Tally
    gflops: list[float]
    start: float
    end: float

    @property
    def window(self) -> float:
        """Seconds, a little more than from scrape to scrape, so that a range of them holds both."""
        return self.end - self.start + 0.1

    def rose(self, metric: str, *labels: str) -> Values:
        """By how much counters rose, from scrape to scrape; labels added up over are left out."""
        change = f"{metric} @ {self.end} - {metric} @ {self.start}"
        values = self.prometheus.values(f"sum by ({', '.join(labels)}) ({change})", *labels, at=self.end)
        return {key: value for key, value in values.items() if value}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with make_serve(f"ARGS=--engine process --shadow 0.1 --capacity {CAPACITY} --max-wait-ms 0") as service:
        target = f"127.0.0.1:{service.base_url.port}"
        gflops = [exit["gflops"] for exit in service.get("/model").json()["exits"]]
        kinds = kinds_for(str(service.base_url))
        with prometheus(tmp_path_factory.mktemp("prometheus"), target) as running:
            # Once before, so that every series is there at the first of the two scrapes.
            drive(service, kinds, Tally(gflops), 0)
            start, tally = running.next_scrape(), Tally(gflops)
            drive(service, kinds, tally, LOAD_SECONDS)
            yield Watched(service, running, tally, gflops, start, running.next_scrape())


def test_requests_are_those_that_were_sent(watched: Watched) -> None:
    rose = watched.rose('msmlp_requests_total{route!="/metrics"}', "route", "status")
    assert rose == watched.tally.requests
    assert {status for _, status in rose} == {"200", "404", "415", "422", "429", "504"}


def test_images_are_those_that_were_answered(watched: Watched) -> None:
    assert watched.rose("msmlp_images_total", "exit", "reason") == watched.tally.images
    assert {exit for exit, _ in watched.tally.images} == {"1", "2", "3", "none"}
    assert {reason for _, reason in watched.tally.images} == {"confident", "final", "max_exit", "deadline", "expired"}
    assert watched.rose("msmlp_deadline_total", "outcome") == watched.tally.deadlines


def test_too_much_at_once_browns_out_and_is_shed(watched: Watched) -> None:
    assert sum(watched.rose("msmlp_shed_total", "reason").values()) == watched.tally.shed > 0
    level = f"max_over_time(msmlp_brownout_level[{watched.window * 1e3:.0f}ms])"
    assert 0 < watched.prometheus.value(level, at=watched.end) <= 8


def test_cost_is_that_of_the_answers(watched: Watched) -> None:
    [spent], [saved], [expected] = (
        watched.rose(f"msmlp_gflops{kind}_total").values() for kind in ("", "_saved", "_expected")
    )
    assert spent == pytest.approx(watched.tally.spent, rel=1e-6)
    assert spent + saved == pytest.approx(watched.tally.answered * watched.gflops[-1], rel=1e-6)
    assert expected == pytest.approx(watched.tally.expected, rel=1e-6)


def test_latency_is_that_of_the_answers(watched: Watched) -> None:
    by_exit = watched.rose("msmlp_image_seconds_sum", "exit")
    for exit in "12":  # what came over /v2 left at the last, and does not say how long it took
        assert by_exit[exit,] == pytest.approx(watched.tally.latency[exit], rel=1e-3)
    # Of a request the metrics know arrival to answer, the client a little more.
    [seconds] = watched.rose('msmlp_request_seconds_sum{route!="/metrics"}').values()
    assert 0 < seconds < watched.tally.waited


@pytest.mark.parametrize(
    ("metric", "counted"),
    [
        ('msmlp_requests_total{route!="/metrics"}', lambda tally: sum(tally.requests.values())),
        ('msmlp_requests_total{status="422"}', lambda tally: tally.requests["/classify", "422"]),
        ("msmlp_images_total", lambda tally: tally.answered),
        ('msmlp_images_total{exit="1"}', lambda tally: sum(n for (exit, _), n in tally.images.items() if exit == "1")),
        ("msmlp_gflops_total", lambda tally: tally.spent),
    ],
)
def test_rates_are_the_counts_over_the_time(watched: Watched, metric: str, counted: Callable[[Tally], float]) -> None:
    """`rate` takes the rise between the first and the last scrape in its range and stretches it to the whole range.

    The service rests at both scrapes, so the rise is what was counted, and the true rate lies between that over the
    range and that over the time from scrape to scrape.
    """
    rate = watched.prometheus.value(f"sum(rate({metric}[{watched.window * 1e3:.0f}ms]))", at=watched.end)
    least, most = (counted(watched.tally) / seconds for seconds in (watched.window, watched.end - watched.start))
    assert least * 0.9999 <= rate <= most * 1.0001


def test_what_is_served_is_as_prometheus_wants_it(watched: Watched) -> None:
    promtool("check", "metrics", given=watched.service.get("/metrics").text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_every_layout_it_is(serve_as: Callable[..., Served], layout: tuple[str, ...]) -> None:
    promtool("check", "metrics", given=httpx.get(f"{serve_as(layout).url}/metrics", timeout=PATIENCE_SECONDS).text)


def test_sums_over_processes_are_as_prometheus_wants_them() -> None:
    totals = Totals()
    for index in range(3):
        metrics = Metrics([0.1, 0.2, 0.3], "name", "1")
        metrics.watch_engines(SimpleNamespace(states=["up"], restarts=0, pids=[os.getpid()], cpu_seconds={}))
        metrics.ended(RequestRecord("id", 0.0, "GET", f"/{index}", status=200, ended=1.0))
        totals.update(index, Snapshot(index, 0.0, list(metrics.registry.collect()), {}, Statistics(), 0))
    totals.retire(2)
    own = CounterMetricFamily("msmlp_frontend_restarts", "Front ends that died and were replaced.", 1)
    promtool("check", "metrics", given=totals.render([own]).decode())


def test_configuration_and_rules_are_sound() -> None:
    promtool("check", "config", CONFIGURATION / "prometheus.yml")
    promtool("check", "rules", CONFIGURATION / "alerts.yml")
    promtool("test", "rules", ROOT / "tests" / "system" / "alerts.yml")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_pages_own_configuration_is_sound(tmp_path: Path, block: str) -> None:
    (tmp_path / "alerts.yml").symlink_to(CONFIGURATION / "alerts.yml")
    (tmp_path / "prometheus.yml").write_text(block)
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_every_alert_is_tested_quiet_and_firing(alert: str) -> None:
    tests = yaml.safe_load((ROOT / "tests" / "system" / "alerts.yml").read_text())["tests"]
    found = [one for test in tests for one in test.get("alert_rule_test", []) if one["alertname"] == alert]
    assert {"exp_alerts" in one for one in found} == {True, False}


def test_prometheus_runs_every_rule_and_none_fires(watched: Watched) -> None:
    [group] = watched.prometheus.get("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        assert rule["state"] != "firing", rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_data_to_judge(watched: Watched, rule: dict[str, Any]) -> None:
    judged, compared, _ = re.split(r"\s([<>]=?|==)\s", rule["expr"], maxsplit=1)
    assert compared
    assert watched.prometheus.series(judged, at=watched.end)


def queries() -> Iterator[tuple[str, str]]:
    """Panels' titles and queries, as Grafana would send them."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_every_panel_has_data(watched: Watched, title: str, query: str) -> None:
    assert_data(watched, query)


@pytest.mark.parametrize("query", re.findall(r"```promql\n(.*?)```", PAGE, flags=re.DOTALL))
def test_every_query_of_the_page_has_data(watched: Watched, query: str) -> None:
    assert_data(watched, query)


def assert_data(watched: Watched, query: str) -> None:
    found = watched.prometheus.series(chosen(watched, query), at=watched.end)
    assert any(math.isfinite(float(one["value"][1])) for one in found), query


def chosen(watched: Watched, query: str) -> str:
    """A query with Grafana's variables as they are when the load is looked at."""
    window = f"{watched.window * 1e3:.0f}ms"
    for variable, value in {"$__rate_interval": window, "$__range": window, "$job": "msmlp", "$instance": ".+"}.items():
        query = query.replace(variable, value)
    return query


def test_the_exits_on_the_page_are_what_the_dashboards_table_shows(watched: Watched, cifar10: Path) -> None:
    test = load_dataset(cifar10, 32).test
    assert test is not None
    files = [("images", encoded(pixels)) for pixels in test.pixels]
    start = watched.prometheus.next_scrape()
    for first in range(0, len(files), 50):
        answer = watched.service.post("/classify", params={"degrade": "false"}, files=files[first : first + 50])
        assert answer.status_code == 200, answer.text
    seen = replace(watched, start=start, end=watched.prometheus.next_scrape())
    [table] = [panel for panel in DASHBOARD["panels"] if panel["title"] == "Exits"]
    titles = table["transformations"][1]["options"]["renameByName"]
    values = {
        titles[f"Value #{target['refId']}"]: seen.prometheus.values(chosen(seen, target["expr"]), "exit", at=seen.end)
        for target in table["targets"]
    }
    shown = re.findall(r"^\| (\d) \| ([\d.]+) % \| ([\d.]+) GFLOPs \| ([\d.]+) % \|$", PAGE, flags=re.MULTILINE)
    assert len(shown) == len(watched.gflops)
    for exit, images, price, gflops in shown:
        assert 100 * values["share of images"][exit,] == pytest.approx(float(images), abs=0.2)
        assert values["cost per image"][exit,] == pytest.approx(float(price), rel=0.005)
        assert 100 * values["share of GFLOPs"][exit,] == pytest.approx(float(gflops), abs=0.2)


@pytest.mark.parametrize("name", ["job", "instance"])
def test_there_is_something_to_choose_on_the_dashboard(watched: Watched, name: str) -> None:
    [variable] = [one for one in DASHBOARD["templating"]["list"] if one["name"] == name]
    [found] = re.findall(rf"^label_values\((.+), {name}\)$", variable["query"])
    assert watched.prometheus.values(found.replace("$job", "msmlp"), name)
