"""The chart, rendered by Helm, and the releases that are looked at."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "helm" / "msmlp"
Object = dict[str, Any]

PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
EVERYTHING: Object = {
    "fullnameOverride": "classifier",
    "image": {
        "repository": "registry.example/msmlp",
        "tag": "1",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "x"}],
    },
    "settings": {"policy": "fast", "max_bodies_bytes": 10**9, "shadow": 0.0001, "access_log": True, "traces": True},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    "weights": {"claim": "weights", "path": "/weights/mine"},
    "gpu": {"enabled": True, "runtimeClassName": "nvidia"},
    "grpc": {"enabled": True},
    "metrics": {"enabled": True},
    "tls": {"secretName": "certificate"},
    "keys": {"secretName": "keys"},
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a/b": "c"}},
    "rollingUpdate": {"maxUnavailable": 1, "maxSurge": "25%"},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "autoscaling": {"enabled": True, "backlogSeconds": 0.1234, "deviceInUse": 0.5},
    "networkPolicy": {"from": [PEER], "metricsFrom": [PEER], "otlp": {"to": [PEER]}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "serviceAccount": {"name": "someone", "annotations": {"a/b": "c"}},
    "podAnnotations": {"a/b": "c"},
    "podLabels": {"team": "vision"},
    "priorityClassName": "high",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
            }
        }
    },
}
NOTHING: Object = {
    "serviceAccount": {"create": False},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "topologySpread": [],
    "resources": {"requests": None, "limits": None},
}
RELEASES: dict[str, Object] = {
    "as it is": {},
    "gpu": {"gpu": {"enabled": True}},
    "tls": {"tls": {"secretName": "certificate"}, "serviceMonitor": {"enabled": True}},
    "own weights": {"weights": {"claim": "weights"}},
    "closed": {"networkPolicy": {"from": [PEER, {"podSelector": {"matchLabels": {"app": "shop"}}}]}},
    "everything": EVERYTHING,
    "nothing": NOTHING,
}


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """A command of Helm to its end."""
    if not shutil.which("helm"):
        pytest.fail("needs helm on the PATH (python -m scripts.get_helm puts it into .tools)")
    return subprocess.run(["helm", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def render(values: Object, scratch: Path, chart: Path = CHART) -> list[Object]:
    """Every object of a release called `test` with these values."""
    done = helm("template", "test", chart, "--values", written(values, scratch))
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def written(values: Object, scratch: Path) -> Path:
    """A file of values."""
    file = scratch / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def of_kind(kind: str, things: list[Object]) -> Object:
    """The one of this kind."""
    [thing] = [thing for thing in things if thing["kind"] == kind]
    return thing
