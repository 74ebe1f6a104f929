"""The query that prometheus-adapter is told to ask, asked of Prometheus as its own tool runs it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.metrics import Metrics
from tests.system.helm import EVERYTHING, ROOT, of_kind, render

pytestmark = pytest.mark.system

[RULE] = yaml.safe_load((ROOT / "docker" / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
SERIES = "msmlp_backlog_seconds"


def test_each_pod_has_its_mean_of_a_minute(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.fail("needs promtool (on Debian: apt-get install prometheus)")
    # As the adapter fills it for an autoscaler that asks for two of three pods.
    query = RULE["metricsQuery"].replace("<<.Series>>", SERIES).replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="shop",pod=~"a|b"')
    values = {"a": "0 0.2 0.4 0.6 0.8", "b": "1 1 1 1 1", "c": "9 9 9 9 9"}
    series = [
        {"series": f'{SERIES}{{namespace="shop",pod="{pod}",instance="{pod}:8000"}}', "values": shown}
        for pod, shown in values.items()
    ]
    expected = [{"labels": '{pod="a"}', "value": 0.5}, {"labels": '{pod="b"}', "value": 1}]
    asked = {"expr": query, "eval_time": "1m5s", "exp_samples": expected}
    test = {"rule_files": [], "tests": [{"interval": "15s", "input_series": series, "promql_expr_test": [asked]}]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_the_metric_that_is_served_and_asked_for(tmp_path: Path) -> None:
    assert RULE["seriesQuery"].startswith(SERIES + "{")
    assert SERIES in {family.name for family in Metrics([0.1, 0.2], "m", "v").registry.collect()}
    [metric] = of_kind("HorizontalPodAutoscaler", render(EVERYTHING, tmp_path))["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == SERIES
    labels = RULE["resources"]["overrides"]
    assert labels == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
    assert all(f'{label}!=""' in RULE["seriesQuery"] for label in labels)
