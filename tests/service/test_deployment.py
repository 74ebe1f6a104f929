"""What is deployed on a Ray cluster, as data; without Ray."""

from pathlib import Path

import pytest

from msmlp.model.errors import OptionError
from msmlp.service.deployment import OF_RAY, Deployment


def test_a_replica_has_the_given_settings_and_its_share_of_the_node(tiny_weights: Path) -> None:
    settings = Deployment(settings={"weights": str(tiny_weights), "policy": "fast"}, num_cpus=3.5).service_settings()
    assert (settings.weights, settings.policy) == (tiny_weights, "fast")
    assert (settings.decode_threads, settings.device) == (4, "cpu")


def test_with_a_gpu_it_serves_from_a_gpu() -> None:
    assert Deployment(num_gpus=0.5).service_settings().device == "cuda"
    assert Deployment(num_gpus=1, settings={"device": "cpu", "decode_threads": 9}).service_settings().device == "cpu"


@pytest.mark.parametrize("name", sorted(OF_RAY))
def test_settings_that_are_rays_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name}: not with Ray Serve: {OF_RAY[name]}"):
        Deployment(settings={name: 1}).service_settings()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(OptionError, match="no such setting"):
        Deployment(settings={"wieghts": "x"}).service_settings()


def test_a_config_says_what_differs_from_the_defaults() -> None:
    deployment = Deployment(settings={"policy": "fast"}, version="abc", max_replicas=4)
    [application] = deployment.serve_config({"port": 9000})["applications"]
    assert Deployment(**application["args"]) == deployment
    assert set(application["args"]) == {"settings", "version", "max_replicas"}
