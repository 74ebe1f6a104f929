"""The queries that prometheus-adapter is told to ask, asked of Prometheus as its own tool runs it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from msmlp.service.telemetry.metrics import Metrics
from tests.system.helm import EVERYTHING, ROOT, of_kind, render

pytestmark = pytest.mark.system

RULES = yaml.safe_load((ROOT / "docker" / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
BACKLOG, WORK = "msmlp_backlog_seconds", "msmlp_work_seconds_total"


def series_of(rule: dict[str, Any]) -> str:
    """What a rule is about."""
    name: str = rule["seriesQuery"].partition("{")[0]
    return name


@pytest.mark.parametrize(
    ("series", "shown", "expected"),
    [
        (BACKLOG, {"a": "0 0.2 0.4 0.6 0.8", "b": "1 1 1 1 1", "c": "9 9 9 9 9"}, {"a": 0.5, "b": 1}),
        # Seconds of work that rise by so much every 15 s.
        (WORK, {"a": "0+3x12", "b": "100+15x12", "c": "0+9x12"}, {"a": 0.2, "b": 1}),
    ],
)
def test_each_pod_has_its_own(series: str, shown: dict[str, str], expected: dict[str, float], tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.fail("needs promtool (on Debian: apt-get install prometheus)")
    # As the adapter fills it for an autoscaler that asks for two of three pods.
    [rule] = [rule for rule in RULES if series_of(rule) == series]
    query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="shop",pod=~"a|b"')
    given = [
        {"series": f'{series}{{namespace="shop",pod="{pod}",instance="{pod}:8000"}}', "values": values}
        for pod, values in shown.items()
    ]
    samples = [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in expected.items()]
    asked = {"expr": query, "eval_time": "1m5s" if series == BACKLOG else "3m", "exp_samples": samples}
    test = {"rule_files": [], "tests": [{"interval": "15s", "input_series": given, "promql_expr_test": [asked]}]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_metrics_that_are_served_and_asked_for(tmp_path: Path) -> None:
    served = {sample.name for family in Metrics([0.1, 0.2], "m", "v").registry.collect() for sample in family.samples}
    assert {series_of(rule) for rule in RULES} <= served
    metrics = of_kind("HorizontalPodAutoscaler", render(EVERYTHING, tmp_path))["spec"]["metrics"]
    asked = [metric["pods"]["metric"]["name"] for metric in metrics]
    assert asked == [rule.get("name", {}).get("as", series_of(rule)) for rule in RULES]
    for rule in RULES:
        labels = rule["resources"]["overrides"]
        assert labels == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
        assert all(f'{label}!=""' in rule["seriesQuery"] for label in labels)
