"""What KServe is given asks for routes that there are, in time that there is; tests/system checks its form."""

from typing import Any

import pytest
import yaml

from msmlp.service.http.routes import oip
from msmlp.service.settings import Settings
from tests.docs.test_readme import ROOT

Object = dict[str, Any]


def objects(name: str) -> list[Object]:
    return list(yaml.safe_load_all((ROOT / "docker" / "kserve" / f"{name}.yaml").read_text()))


[OF_THE_IMAGE] = objects("inferenceservice")
RUNTIME, OF_STORAGE = objects("servingruntime")
CONTAINERS = {"image": OF_THE_IMAGE["spec"]["predictor"], "storage": RUNTIME["spec"]}


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> Object:
    """The one container; KServe takes no other name."""
    [found] = CONTAINERS[request.param]["containers"]
    assert found["name"] == "kserve-container"
    return dict(found)


def test_probes_ask_routes_of_the_protocol(container: Object) -> None:
    routes = {getattr(route, "path", None) for route in oip.router.routes}
    [port] = container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    for probe, health in (("startupProbe", "ready"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
        assert container[probe]["httpGet"] == {"path": f"/v2/health/{health}", "port": port["containerPort"]}
        assert f"/v2/health/{health}" in routes


def test_the_environment_is_settings(container: Object) -> None:
    given = [variable["name"] for variable in container["env"] if variable["name"] != "PROTOCOL"]
    assert given
    assert set(given) <= {f"MSMLP_{name.upper()}" for name in Settings.model_fields}


def test_no_container_has_more_rights_than_it_needs(container: Object) -> None:
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_a_gpu_is_asked_for_and_must_be_there(container: Object) -> None:
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "MSMLP_DEVICE", "value": "cuda"} in container["env"]


def test_kserve_knows_the_protocol_and_where_weights_are() -> None:
    [of_the_image], [of_the_runtime] = OF_THE_IMAGE["spec"]["predictor"]["containers"], RUNTIME["spec"]["containers"]
    assert {"name": "PROTOCOL", "value": "v2"} in of_the_image["env"]
    assert {"name": "MSMLP_WEIGHTS", "value": "/mnt/models"} in of_the_runtime["env"]
    model = OF_STORAGE["spec"]["predictor"]["model"]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {each["name"] for each in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["runtime"] == RUNTIME["metadata"]["name"]


@pytest.mark.parametrize("service", [OF_THE_IMAGE, OF_STORAGE], ids=["image", "storage"])
def test_a_pod_has_the_time_to_drain_and_no_foreign_settings(service: Object) -> None:
    predictor = service["spec"]["predictor"]
    end = Settings.model_fields["drain_seconds"].default + Settings.model_fields["shutdown_seconds"].default
    assert predictor["terminationGracePeriodSeconds"] >= end + 5
    assert predictor["enableServiceLinks"] is False
    assert predictor["minReplicas"] >= 1
