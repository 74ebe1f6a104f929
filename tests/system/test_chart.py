"""What the rendered chart must say beyond any schema, so that it runs this service."""

import json
from pathlib import Path

import pytest
import yaml

from msmlp.service.http.routes import operations
from msmlp.service.settings import Settings, load_settings
from scripts.docs import SET_BY_OTHER_VALUES
from tests.system.helm import EVERYTHING, NOTHING, RELEASES, ROOT, Object, of_kind, render

pytestmark = pytest.mark.system


def pod_of(things: list[Object]) -> Object:
    spec: Object = of_kind("Deployment", things)["spec"]["template"]["spec"]
    return spec


def settings_of(container: Object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the service makes of a container's environment."""
    for variable in container.get("env", []):
        monkeypatch.setenv(variable["name"], variable["value"])
    return load_settings()


def test_the_services_settings_are_those_of_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [container] = pod_of(render(EVERYTHING, tmp_path))["containers"]
    settings = settings_of(container, monkeypatch)
    for name, value in EVERYTHING["settings"].items():
        assert getattr(settings, name) == value
    assert (settings.device, settings.weights, settings.grpc_port) == ("cuda", Path("/weights/mine"), 8001)
    assert {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"} in container["env"]


def test_every_setting_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {name: field for name, field in Settings.model_fields.items() if name not in SET_BY_OTHER_VALUES}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    keys = {name: f"/keys/{name}" for name in ("api_keys_file", "admin_keys_file")}
    unset = {"devices": "0,1", "cors_origins": "https://shop.example", **keys}  # 1 for the others
    given = {name: unset.get(name, 1) if default is None else default for name, default in defaults.items()}
    [container] = pod_of(render({"settings": given}, tmp_path))["containers"]
    assert len(container["env"]) == len(given)
    settings = settings_of(container, monkeypatch)
    set_to = {name: getattr(settings, name) for name in given}
    assert {name: str(value) if name in keys else value for name, value in set_to.items()} == given


def test_without_values_the_service_has_its_defaults(tmp_path: Path) -> None:
    [container] = pod_of(render({}, tmp_path))["containers"]
    assert "env" not in container
    assert container["image"] == "msmlp:cpu"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_a_gpu_is_asked_for_and_must_be_there(tmp_path: Path) -> None:
    [container] = pod_of(render({"gpu": {"enabled": True}}, tmp_path))["containers"]
    assert container["image"] == "msmlp:gpu"
    assert container["resources"]["limits"] == {"memory": "3Gi", "nvidia.com/gpu": 1}
    assert container["env"] == [{"name": "MSMLP_DEVICE", "value": "cuda"}]
    part = {"gpu": {"enabled": True, "resource": "nvidia.com/mig-1g.10gb"}, "settings": {"device": "auto"}}
    [container] = pod_of(render(part, tmp_path))["containers"]
    assert container["resources"]["limits"] == {"memory": "3Gi", "nvidia.com/mig-1g.10gb": 1}
    assert container["env"] == [{"name": "MSMLP_DEVICE", "value": "auto"}]


def test_weights_of_a_claim_are_mounted_and_served(tmp_path: Path) -> None:
    pod = pod_of(render({"weights": {"claim": "mine"}}, tmp_path))
    [container], [volume] = pod["containers"], pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/weights", "readOnly": True}]
    assert volume["persistentVolumeClaim"] == {"claimName": "mine", "readOnly": True}
    assert container["env"] == [{"name": "MSMLP_WEIGHTS", "value": "/weights"}]


@pytest.mark.parametrize("name", RELEASES)
def test_probes_ask_routes_that_there_are(name: str, tmp_path: Path) -> None:
    [container] = pod_of(render(RELEASES[name], tmp_path))["containers"]
    routes = {getattr(route, "path", None) for route in operations.router.routes}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe: get["path"] for probe, get in asked.items()} == {
        "startupProbe": "/readyz",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert {get["path"] for get in asked.values()} <= routes
    own = {"everything": (8002, "HTTP"), "tls": (8000, "HTTPS")}.get(name, (8000, "HTTP"))
    assert {(ports[get["port"]], get["scheme"]) for get in asked.values()} == {own}


def test_secrets_are_mounted_where_the_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = pod_of(render(EVERYTHING, tmp_path))
    [container] = pod["containers"]
    settings = settings_of(container, monkeypatch)
    assert (settings.ssl_certfile, settings.ssl_keyfile) == (Path("/tls/tls.crt"), Path("/tls/tls.key"))
    assert settings.metrics_port == 8002
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"] if mount["readOnly"]}
    assert {mounts[name]: secret for name, secret in secrets.items()} == {"/tls": "certificate", "/keys": "keys"}


@pytest.mark.parametrize(("tls", "metrics"), [(True, False), (True, True), (False, True), (False, False)])
def test_prometheus_scrapes_the_port_for_metrics_if_there_is_one(tls: bool, metrics: bool, tmp_path: Path) -> None:
    values = {"serviceMonitor": {"enabled": True}, "metrics": {"enabled": metrics}}
    things = render(values | ({"tls": {"secretName": "x"}} if tls else {}), tmp_path)
    [scraped] = of_kind("ServiceMonitor", things)["spec"]["endpoints"]
    assert scraped["port"] == ("metrics" if metrics else "http")
    assert scraped.get("scheme") == ("https" if tls and not metrics else None)


@pytest.mark.parametrize("given", [{}, {"drain_seconds": 0}, {"drain_seconds": 12.5, "shutdown_seconds": 100}])
def test_a_pod_has_the_time_to_end(given: dict[str, float], tmp_path: Path) -> None:
    pod, settings = pod_of(render({"settings": given}, tmp_path)), Settings(**given)
    end = settings.drain_seconds + settings.shutdown_seconds
    assert end + 5 <= pod["terminationGracePeriodSeconds"] <= end + 6


@pytest.mark.parametrize("name", RELEASES)
def test_no_container_has_more_rights_than_it_needs(name: str, tmp_path: Path) -> None:
    pod = pod_of(render(RELEASES[name], tmp_path))
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", RELEASES)
def test_whoever_selects_pods_selects_these(name: str, tmp_path: Path) -> None:
    things = render(RELEASES[name], tmp_path)
    deployment, service = of_kind("Deployment", things), of_kind("Service", things)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    for thing in things:
        if thing["kind"] == "PodDisruptionBudget":
            selectors.append(thing["spec"]["selector"]["matchLabels"])
        elif thing["kind"] == "NetworkPolicy":
            selectors.append(thing["spec"]["podSelector"]["matchLabels"])
        elif thing["kind"] == "ServiceMonitor":
            assert thing["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            # The alerts ask for the job msmlp.
            assert service["metadata"]["labels"][thing["spec"]["jobLabel"]] == "msmlp"
    for spread in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
        selectors.append(spread["labelSelector"]["matchLabels"])
    assert len(selectors) == (2 if name == "nothing" else 6)
    # These two alone: a selector cannot be changed, nor may a new version's pods fall out of it.
    lasting = {label: labels[label] for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance")}
    assert all(selector == lasting for selector in selectors)


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("grpc", [False, True])
def test_ports_are_the_containers(grpc: bool, metrics: bool, tmp_path: Path) -> None:
    ports = {"grpc": {"enabled": grpc}, "metrics": {"enabled": metrics}}
    things = render({**ports, "serviceMonitor": {"enabled": True}}, tmp_path)
    [container] = pod_of(things)["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert named == {"http": 8000, **({"grpc": 8001} if grpc else {}), **({"metrics": 8002} if metrics else {})}
    served = of_kind("Service", things)["spec"]["ports"]
    assert [port["targetPort"] for port in served] == list(named)
    rules = of_kind("NetworkPolicy", things)["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == list(named)
    [scraped] = of_kind("ServiceMonitor", things)["spec"]["endpoints"]
    assert scraped["port"] in {port["name"] for port in served}


def test_the_network_policy_names_callers_and_targets(tmp_path: Path) -> None:
    [rule] = of_kind("NetworkPolicy", things := render({}, tmp_path))["spec"]["ingress"]
    assert "from" not in rule
    assert of_kind("NetworkPolicy", things)["spec"]["egress"] == []
    policy = of_kind("NetworkPolicy", render(EVERYTHING, tmp_path))["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["from"] for rule in policy["ingress"]] == [
        EVERYTHING["networkPolicy"]["from"],
        EVERYTHING["networkPolicy"]["metricsFrom"],
    ]
    traces, names = policy["egress"]
    assert traces == {"ports": [{"port": 4318}], "to": EVERYTHING["networkPolicy"]["otlp"]["to"]}
    assert {port["port"] for port in names["ports"]} == {53}


def test_pods_are_scaled_on_backlog_and_work(tmp_path: Path) -> None:
    things = render(EVERYTHING, tmp_path)
    deployment, scaler = of_kind("Deployment", things), of_kind("HorizontalPodAutoscaler", things)
    assert "replicas" not in deployment["spec"]  # each upgrade would undo what the autoscaler has done
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == "classifier"
    asked = {metric["pods"]["metric"]["name"]: metric["pods"]["target"] for metric in scaler["spec"]["metrics"]}
    assert asked == {
        "msmlp_backlog_seconds": {"type": "AverageValue", "averageValue": "124m"},
        "msmlp_device_in_use": {"type": "AverageValue", "averageValue": "500m"},
    }


def test_alerts_and_dashboard_are_those_of_the_stack(tmp_path: Path) -> None:
    things = render(EVERYTHING, tmp_path)
    alerts = of_kind("PrometheusRule", things)["spec"]
    assert alerts == yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())
    dashboard = of_kind("ConfigMap", things)
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    stack = ROOT / "docker" / "grafana" / "dashboards" / "msmlp.json"
    assert json.loads(dashboard["data"]["msmlp.json"]) == json.loads(stack.read_text())


def test_what_is_switched_off_is_not_there(tmp_path: Path) -> None:
    kinds = {thing["kind"] for thing in render(NOTHING, tmp_path)}
    assert kinds == {"Deployment", "Service"}
    pod = pod_of(render(NOTHING, tmp_path))
    assert pod["serviceAccountName"] == "default"


def test_a_new_version_takes_no_pod_away(tmp_path: Path) -> None:
    strategy = of_kind("Deployment", render({}, tmp_path))["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
