"""docs/operations.md: its commands run, or name what is there. (Its PromQL: tests/system/test_prometheus.py.)"""

import json
import re
import shlex
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import typer
import yaml

from msmlp.main import app
from msmlp.service.settings import Settings
from msmlp.service.telemetry.metrics import Metrics
from tests.docs.commands import blocks_of
from tests.docs.test_readme import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
blocks = partial(blocks_of, PAGE)
DOCKER = ROOT / "docker"


def test_the_first_load_is_answered(run: Any) -> None:
    [block] = blocks("bash")
    answer = json.loads(run(block.replace("seq 30", "seq 2") + "\ncat answer.json"))
    assert answer["operating_point"]["name"] == "accurate"


@pytest.mark.parametrize("command", blocks("console"))
def test_commands_name_what_is_there(command: str) -> None:
    words = shlex.split(command)
    if words[0] == ".venv/bin/msmlp":
        known = typer.main.get_command(app)
        for name in words[1:3]:
            known = known.commands[name]  # type: ignore[attr-defined]
        options = {option for parameter in known.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
        return
    assert words[:2] == ["docker", "compose"]
    files = [word for before, word in pairwise(words) if before == "-f"]
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_the_addresses_are_those_of_compose() -> None:
    listed = re.findall(r"^\| `localhost:(\d+)` \|", PAGE, flags=re.MULTILINE)
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values()
    assert sorted(listed) == sorted(port.split(":")[1] for service in services for port in service["ports"])


def test_settings_and_metrics_are_called_by_their_names() -> None:
    settings = {name.replace("_", "-") for name in Settings.model_fields}
    elsewhere = {"build", "detach", "wait", "volumes", "url", "bodies", "rates", "seconds"}  # of other commands
    assert set(re.findall(r"--([a-z][a-z-]+)", PAGE)) <= settings | elsewhere
    assert set(re.findall(r"MSMLP_(\w+)", PAGE)) <= {name.upper() for name in Settings.model_fields}
    served = {family.name for family in Metrics((0.1, 0.2, 0.3), "any", "1").registry.collect()}
    assert {name.removesuffix("_total") for name in re.findall(r"\bmsmlp_\w+", PAGE)} <= served


def test_what_is_to_be_seen_has_the_label_values_of_the_metrics() -> None:
    registry = Metrics((0.1, 0.2, 0.3), "any", "1").registry
    fixed = "phase", "reason", "outcome"
    told = re.findall(rf'`(msmlp_\w+)\{{({"|".join(fixed)})="(\w+)"\}}`', PAGE)
    assert {label for _, label, _ in told} == set(fixed)
    for metric, label, value in told:
        assert registry.get_sample_value(metric, {label: value}) == 0, f"{metric} {value}"


def test_the_prices_shown_are_those_of_the_shipped_weights() -> None:
    gflops = json.loads((ROOT / "weights" / "cifar10-s" / "manifest.json").read_text())["gflops_cumulative"]
    shown = re.findall(r"^\| (\d) \| [\d.]+ % \| ([\d.]+) GFLOPs \|", PAGE, flags=re.MULTILINE)
    assert [float(price) for _, price in shown] == [float(f"{each:.3g}") for each in gflops]
    assert f"one image at exit 3 pays for {gflops[2] / gflops[0]:.0f} at exit 1" in " ".join(PAGE.split())


def test_every_alert_has_its_section_and_none_else() -> None:
    [group] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for rule in group["rules"]]
    assert re.findall(r"^### (\w+)$", PAGE, flags=re.MULTILINE) == alerts
    assert set(re.findall(r"\bMsmlp\w+", PAGE)) == set(alerts)


def test_rows_of_the_dashboard_are_called_by_their_names() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "msmlp.json").read_text())
    rows = {panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"}
    told = {" ".join(bold.split()) for bold in re.findall(r"\*\*([A-Z][^*]+\?)\*\*", PAGE)}
    assert told == rows - {"Now"}
