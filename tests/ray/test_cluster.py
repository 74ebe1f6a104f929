"""The service on a real Ray cluster of two nodes: traffic through the proxies, deaths, scaling, and new weights.

The tests share what is deployed, and each begins with a deployment of its own.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

import msmlp
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests import reloads
from tests.chaos.load import Load, known_of
from tests.fakes import PATIENCE_SECONDS
from tests.ray.conftest import Ray
from tests.reloads import Version, train_two_stages
from tests.servers import encoded, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    # Ray's own, which say nothing of us.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*", r"ignore::FutureWarning:ray\..*"),
]

TWO = "--min-replicas", "2", "--max-replicas", "2"


@pytest.fixture(scope="module")
def versions(tiny_weights: Path, digits_folder: Path, digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two weights folders with different answers."""
    other = train_two_stages(digits_folder, tmp_path_factory.mktemp("weights") / "two-stages")
    return [Version.of(each, digits.test[:30]) for each in (tiny_weights, other)]


def test_traffic_through_the_proxies_and_past_them(cluster: Ray, tiny_weights: Path, digits: Any) -> None:
    cluster.serve(tiny_weights, *TWO, "--direct-port", "0", "--max-images", "64")
    pictures = digits.test[:20]
    files = [encoded(each) for each in pictures]
    with msmlp.load(tiny_weights, device="cpu", max_batch=8) as model:
        expected = [(each.label, each.exit) for each in model.classify(files).results]
    addresses = cluster.addresses()
    assert len(addresses) == 2
    assert len(cluster.nodes()) == 2
    for url in (cluster.url, *addresses):
        with msmlp.Client(url) as client:
            _answers_as_a_service(client, files, expected)
        with triton.InferenceServerClient(url.removeprefix("http://")) as other:
            assert other.is_model_ready("msmlp")
            tensor = triton.InferInput("pixels", list(pictures.shape), "UINT8")
            tensor.set_data_from_numpy(np.ascontiguousarray(pictures))
            found = other.infer("msmlp", [tensor])
        assert [label.decode() for label in found.as_numpy("label").tolist()] == [label for label, _ in expected]
        answer = httpx.get(f"{url}/readyz", headers={"X-Request-ID": "mine"})
        assert answer.headers.get_list("X-Request-ID") == ["mine"]
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]


def _answers_as_a_service(client: msmlp.Client, files: list[bytes], expected: list[tuple[Any, Any]]) -> None:
    assert [(each.label, each.exit) for each in client.classify(files).results] == expected
    assert {line.index for line in client.stream(files[:3])} == {0, 1, 2}
    for images, status, code in (([b"none"], 422, "undecodable_image"), (files[:1] * 65, 413, "too_many_images")):
        with pytest.raises(msmlp.ServiceError) as refused:
            client.classify(images)
        assert (refused.value.status, refused.value.code) == (status, code)


def test_a_replica_killed_under_load_costs_its_own_requests_alone(
    cluster: Ray, tiny_weights: Path, digits: Any
) -> None:
    cluster.serve(tiny_weights, *TWO, "--direct-port", "0")
    known = known_of(tiny_weights, digits.test)
    before = cluster.addresses()
    with Load(cluster.url, known, clients=6, pause=0.0) as load:
        load.wait_for(100)
        cluster.kill(cluster.replicas()[0])
        load.wait_for(100)
        wait_until(lambda: cluster.running() == 2 and len(cluster.addresses()) == 2 and cluster.addresses() != before)
        load.wait_for(100)
    # In the same order on every connection, each with its own id: a second answer would be the next request's.
    load.check("503", "cut")
    assert load.outcomes["503"] + load.outcomes["cut"] <= 6, load.outcomes


def test_a_replica_whose_engine_is_down_is_replaced(cluster: Ray, tiny_weights: Path, digits: Any) -> None:
    cluster.serve(tiny_weights, *TWO, "--direct-port", "0")
    broken, _ = before = cluster.replicas()
    with Load(cluster.url, known_of(tiny_weights, digits.test), clients=3) as load:
        load.wait_for(20)
        cluster.break_engine(broken)
        load.wait_for(1, "503")
        wait_until(lambda: cluster.running() == 2 and broken not in cluster.replicas())
        load.wait_for(20)
    load.check("503")
    assert len(cluster.replicas()) == 2
    assert set(cluster.replicas()) & set(before)


class Crowd(Load):
    """Clients of many images a request, until the block ends."""

    def __init__(self, url: str, files: list[bytes], clients: int) -> None:
        super().__init__(url, (), clients=clients)
        self._form: Any = {"url": f"{url}/classify", "files": [("images", file) for file in files]}

    def _ask_on(self) -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            while not self._over.is_set():
                response = client.post(**self._form)
                self.outcomes[str(response.status_code)] += 1
                if response.status_code == 429:
                    assert int(response.headers["Retry-After"]) > 0
                    self._over.wait(0.1)


class Steady:
    """One of our clients that asks ten times a second, and must be answered right each time."""

    def __init__(self, url: str, file: bytes, label: str | None) -> None:
        self._url, self._file, self._label = url, file, label
        self.answered, self.fault = 0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    def __enter__(self) -> "Steady":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert not self.fault

    def wait_for(self, more: int) -> None:
        enough = self.answered + more
        wait_until(lambda: self.answered >= enough or bool(self.fault))

    def _ask_on(self) -> None:
        with msmlp.Client(self._url) as client:
            while not self._over.wait(0.1):
                try:
                    found = client.classify(self._file, policy="accurate", degrade=False).results[0].label
                except msmlp.ServiceError as error:
                    self.fault = str(error)
                    return
                self.answered += 1
                self.fault = self.fault or ("" if found == self._label else f"{found}, expected {self._label}")


def test_replicas_come_with_the_load_and_go_after_it(cluster: Ray, digits: Any) -> None:
    # A node's proxy ends with its last replica, and may close a connection just when a request comes on it. Our clients
    # ask again; others need a load balancer that asks the proxies' health.
    scaling = "--max-replicas", "3", "--up-seconds", "1", "--down-seconds", "1", "--target-wait-ms", "50"
    cluster.serve(DEFAULT_WEIGHTS, *scaling)
    cluster.wait_for(1)
    files = [encoded(each) for each in digits.test]
    with msmlp.load(device="cpu", max_batch=8) as model:
        label = model.classify(files[0], policy="accurate").results[0].label
    with Steady(cluster.url, files[0], label) as steady:
        steady.wait_for(20)
        assert cluster.running() == 1  # requests alone are no load
        with Crowd(cluster.url, files, clients=6) as crowd:
            wait_until(lambda: cluster.running() >= 2)
            steady.wait_for(5)
        crowd.check()
        assert crowd.outcomes["200"] > 0
        cluster.wait_for(1)
        steady.wait_for(20)


def test_new_weights_replace_the_old_without_an_error(cluster: Ray, versions: list[Version], digits: Any) -> None:
    old, new = versions
    cluster.serve(old.folder)
    load = reloads.Load(cluster.url, reloads.as_files(digits.test[:30]), versions)
    with load.from_clients(4):
        cluster.serve(new.folder)
        cluster.wait_for(1)
        wait_until(lambda: len(cluster.replicas()) == 1)
        ended = time.monotonic()
        wait_until(lambda: bool(load.versions_since(ended)) or bool(load.faults))
    assert {name for _, name in load.answered} == {old.name, new.name}
    assert load.versions_since(ended) == {new.name}


def test_the_printed_config_deploys_the_same(cluster: Ray, versions: list[Version], tmp_path: Path) -> None:
    old, new = versions
    cluster.serve(old.folder)
    config = tmp_path / "serve.yaml"
    config.write_text(cluster.deploy(new.folder, "--print-config").stdout)
    command = Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address", cluster.address, config
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    with msmlp.Client(cluster.url) as client:
        wait_until(lambda: client.model()["version"] == new.name)


def test_a_deployment_that_fails_leaves_what_is_served(cluster: Ray, versions: list[Version], digits: Any) -> None:
    old = versions[0]
    cluster.serve(old.folder)
    done = cluster.deploy(old.folder, "--device", "cuda")
    assert done.returncode == 1
    cause = "msmlp.model.errors.OptionError: device: cuda"
    assert done.stderr.startswith(f"msmlp: Ray could not deploy the service: {cause}")
    assert len(done.stderr.splitlines()) == 1
    with msmlp.Client(cluster.url) as client:
        answer = client.classify(encoded(digits.test[0]))
    assert answer["model"]["version"] == old.name
