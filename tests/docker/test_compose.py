"""docker/compose.yaml and compose.gpu.yaml, as far as can be said where no engine runs, and what they mount."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from msmlp.service.settings import Settings

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DOCKERFILE = (DOCKER.parent / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())


def mounts(service: str) -> dict[str, str]:
    """Where in the container → what is mounted there."""
    return {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES[service].get("volumes", [])}


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_the_file_is_as_composes_specification_has_it(file: str) -> None:
    text = (DOCKER / file).read_text()
    assert PyCompose.from_yaml(text).to_spec()
    with pytest.raises(ValueError, match="built"):
        PyCompose.from_yaml(text.replace("build:", "built:"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_built_here_or_has_its_version(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for what in mounts(name).values():
        assert what in COMPOSE["volumes"] or (DOCKER / what).is_dir(), what


def test_both_images_are_the_dockerfiles() -> None:
    assert re.findall(r"cpu\|gpu", DOCKERFILE)
    assert (DOCKER / SERVICES["msmlp"]["build"]["context"] / "Dockerfile").is_file()
    for kind, file in (("cpu", COMPOSE), ("gpu", GPU)):
        service = file["services"]["msmlp"]
        assert service["build"]["args"] == {"EXTRA": kind}
        assert service["image"] == f"msmlp:{kind}"
    [device] = GPU["services"]["msmlp"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert GPU["services"]["msmlp"]["environment"] == ["MSMLP_DEVICE=cuda"]


def test_the_image_for_gpus_names_what_it_wants_of_the_driver() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    [gpu, cpu] = [next(stage for stage in stages if f" AS base-{kind}\n" in stage) for kind in ("gpu", "cpu")]
    assert "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n" in gpu
    assert "ENV" not in cpu
    assert "\nFROM base-${EXTRA} AS service\n" in DOCKERFILE


def test_the_service_is_found_watched_and_let_go_in_peace() -> None:
    service, port = SERVICES["msmlp"], Settings.model_fields["port"].default
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert "HEALTHCHECK" in DOCKERFILE
    end = Settings.model_fields["drain_seconds"].default + Settings.model_fields["shutdown_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) >= end + 5
    variables = dict(each.partition("=")[::2] for each in service["environment"])
    assert PROMETHEUS["scrape_configs"][0]["static_configs"] == [
        {"targets": [f"msmlp:{variables['MSMLP_METRICS_PORT']}"]}
    ]


def test_the_environment_is_settings() -> None:
    known = {f"MSMLP_{name.upper()}" for name in Settings.model_fields}
    assert {each.partition("=")[0] for each in SERVICES["msmlp"]["environment"]} <= known


def test_prometheus_reads_the_configuration_that_is_mounted() -> None:
    [option] = [one for one in SERVICES["prometheus"]["command"] if one.startswith("--config.file=")]
    folder, _, name = option.partition("=")[2].rpartition("/")
    mounted = DOCKER / mounts("prometheus")[folder]
    assert (mounted / name).is_file()
    assert all((mounted / rules).is_file() for rules in PROMETHEUS["rule_files"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DOCKER / mounts("grafana")["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "msmlp.yaml").read_text())["providers"]
    dashboards, home = provider["options"]["path"], SERVICES["grafana"]["environment"]
    shown = Path(home["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(shown.parent) == dashboards
    assert (DOCKER / mounts("grafana")[dashboards] / shown.name).is_file()


def test_every_alert_leads_to_its_section() -> None:
    page = (DOCKER.parent / "docs" / "operations.md").read_text()
    [group] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in page, rule["alert"]
