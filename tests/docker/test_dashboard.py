"""The Grafana dashboard: every query names metrics of the service, and the panels fill their grid.

Its queries run against a real Prometheus in tests/system/test_prometheus.py.
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

from msmlp.service.telemetry.metrics import Metrics

DOCKER = Path(__file__).resolve().parents[2] / "docker"
FILE = DOCKER / "grafana" / "dashboards" / "msmlp.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_chart_ships_the_same_file() -> None:
    assert (DOCKER / "helm" / "msmlp" / "files" / "dashboard.json").resolve() == FILE


def test_every_panel_is_explained_and_has_a_unit() -> None:
    for panel in PANELS:
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_panels_fill_their_rows_and_none_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        squares = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not squares & taken, panel["title"]
        taken |= squares
    assert taken == {(x, y) for x in range(24) for y in range(max(y for _, y in taken) + 1)}


def test_what_can_be_named_has_one_name() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]


def test_every_metric_shown_is_one_of_the_services() -> None:
    metrics = Metrics((0.1, 0.2, 0.3), "any", "1")
    metrics.watch_engines(SimpleNamespace(states=["up"], pids=[os.getpid()], restarts=0, cpu_seconds={}))
    kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    served = {family.name + end for family in metrics.registry.collect() for end in kinds[family.type]}
    shown = set(re.findall(r"\b(?:msmlp|process)_\w+", " ".join(t["expr"] for p in PANELS for t in p["targets"])))
    assert shown <= served, shown - served
    assert len(shown) > 30
