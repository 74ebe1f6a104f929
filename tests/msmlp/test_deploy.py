"""`msmlp deploy ray` without a cluster; with one in tests/ray."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from msmlp.deploy import wait_until_ready
from msmlp.model.errors import MsmlpError
from msmlp.model.weights import load_calibration, load_weights, model_version
from msmlp.service.deployment import Deployment
from tests.processes import Call, run_msmlp


def test_the_config_has_the_weights_version_and_their_absolute_path(
    call: Call, tiny_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_weights.parent)
    options = "--max-replicas", "4", "--num-cpus", "2", "--policy", "fast", "--port", "9000"
    assert call("deploy", "ray", "--print-config", "--weights", tiny_weights.name, *options) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    weights = load_weights(tiny_weights)
    [application] = config["applications"]
    assert config["http_options"] == {"host": "127.0.0.1", "port": 9000}
    assert application["import_path"] == "msmlp.service.ray_app:build"
    assert Deployment(**application["args"]) == Deployment(
        settings={"weights": str(tiny_weights.resolve()), "policy": "fast"},
        version=model_version(weights, load_calibration(weights)),
        max_replicas=4,
        num_cpus=2,
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--max-replicas", "0"), "'--max-replicas': expected at least 1"),
        (("--min-replicas", "3"), "--max-replicas: 1; expected min_replicas (3) or more"),
        (("--num-cpus", "0"), "--num-cpus: expected greater than 0"),
        (("--direct-port", "70000"), "'--direct-port': expected at most 65435"),
        (("--policy", "nix"), "--policy"),
        (("--max-batch", "9999"), "'--max-batch': expected at most 4096"),
        (("--weights", "/nowhere"), "there is no weights folder /nowhere"),
        (("--frontends", "2"), "No such option: --frontends"),
    ],
)
def test_a_bad_option_is_one_line(
    call: Call, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert call("deploy", "ray", "--print-config", *options) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_without_ray_one_line_names_the_extra(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call("deploy", "ray") == 1
    said = capsys.readouterr().err
    assert 'needs the package ray: pip install "msmlp[serve,ray]"' in said
    assert len(said.splitlines()) == 1


class Serve:
    """Ray's module, as `wait_until_ready` asks it: each time for the next of some statuses."""

    def __init__(self, *statuses: tuple[str, str]) -> None:
        self._statuses = list(statuses)

    def status(self) -> Any:
        status, message = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        deployed = SimpleNamespace(message=message)
        application = SimpleNamespace(status=status, message="the application's", deployments={"msmlp": deployed})
        return SimpleNamespace(applications={"msmlp": application})


def test_it_waits_until_all_is_ready() -> None:
    serve = Serve(("DEPLOYING", ""), ("DEPLOYING", ""), ("RUNNING", ""))
    wait_until_ready(serve, 60)
    assert serve.status().applications["msmlp"].status == "RUNNING", "it has asked until then"


def test_a_failure_is_what_the_replica_raised() -> None:
    serve = Serve(("DEPLOYING", ""), ("DEPLOY_FAILED", "Traceback:\n  File x\nOptionError: device: none\n"))
    with pytest.raises(MsmlpError, match=r"^Ray could not deploy the service: OptionError: device: none$"):
        wait_until_ready(serve, 60)


@pytest.mark.parametrize(
    ("message", "told"), [("no node has 99 CPUs", "no node has 99 CPUs"), ("", "the application's")]
)
def test_waiting_has_an_end(message: str, told: str) -> None:
    expected = rf"^not ready after 0 s \(--wait-seconds\); Ray keeps trying, see serve status: {told}$"
    with pytest.raises(MsmlpError, match=expected):
        wait_until_ready(Serve(("DEPLOYING", message)), 0)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            "127.0.0.1:1",
            "no Ray cluster at 127.0.0.1:1 ([Errno 111] Connection refused); start one with: ray start --head",
        ),
        ("ray://127.0.0.1", "'ray://127.0.0.1' is not an address; expected HOST:PORT or auto"),
        ("127.0.0.1:99999", "no Ray cluster at 127.0.0.1:99999"),
    ],
)
def test_without_a_cluster_one_line_says_so(address: str, told: str) -> None:
    done = run_msmlp("deploy", "ray", "--address", address)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"msmlp: --address: {told}")
