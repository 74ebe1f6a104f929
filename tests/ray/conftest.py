"""A real Ray cluster on this machine: two nodes, with proxies on one port, and what is deployed on it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import PATIENCE_SECONDS
from tests.processes import run_msmlp
from tests.servers import wait_until

MEMORY = 80 * 2**20
"""Bytes of each node's object store, which nothing here uses."""

VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "msmlp.service.ray_proxy:middlewares",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # not 10 s: the tests wait for it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


class Ray:
    """The cluster at `address`. `url` is where its proxies listen once something was deployed."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self._port = address, port
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, weights: Path, *options: str) -> "subprocess.CompletedProcess[str]":
        """`msmlp deploy ray`, to its end."""
        fixed = "--address", self.address, "--port", str(self._port), "--drain-seconds", "0", "--max-batch", "8"
        return run_msmlp("deploy", "ray", "--weights", weights, *fixed, *options)

    def serve(self, weights: Path, *options: str) -> None:
        """The same, which must go well."""
        done = self.deploy(weights, *options)
        assert done.returncode == 0, done.stderr

    def running(self) -> int:
        """How many replicas take requests."""
        from ray import serve

        states = serve.status().applications["msmlp"].deployments["msmlp"].replica_states
        return int(states.get("RUNNING", 0))  # type: ignore[call-overload]

    def wait_for(self, replicas: int) -> None:
        """Until so many take requests."""
        wait_until(lambda: self.running() == replicas)

    def replicas(self) -> list[Any]:
        """The actors that are replicas."""
        import ray

        names = ray.util.list_named_actors(all_namespaces=True)
        return [ray.get_actor(**each) for each in names if each["name"].startswith("SERVE_REPLICA::msmlp#")]

    def kill(self, replica: Any) -> None:
        """Its process, as the system does when memory runs out."""
        import ray

        os.kill(ray.get(replica.__ray_call__.remote(lambda _: os.getpid()), timeout=PATIENCE_SECONDS), signal.SIGKILL)

    def nodes(self) -> set[str]:
        """Those that have replicas."""
        import ray

        asked = [each.__ray_call__.remote(_node) for each in self.replicas()]
        return set(ray.get(asked, timeout=PATIENCE_SECONDS))

    def break_engine(self, replica: Any) -> None:
        """As a backend does that fails three times in a row."""
        import ray

        ray.get(replica.__ray_call__.remote(_break_engine), timeout=PATIENCE_SECONDS)

    def addresses(self) -> list[str]:
        """Of replicas that listen by themselves."""
        found: list[str] = httpx.get(f"{self.url}/replicas", timeout=PATIENCE_SECONDS).json()["replicas"]
        return found


def _node(_: Any) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _break_engine(actor: Any) -> None:
    from msmlp.service.engine.messages import Died

    wrapper = actor._replica_impl._user_callable_wrapper
    engine = wrapper.user_callable._server.service.engine
    wrapper.event_loop.call_soon_threadsafe(engine._receive, [Died("the test says so")])


@pytest.fixture(scope="session")
def cluster(_no_settings_from_outside: None) -> Iterator[Ray]:
    """Two nodes of two cores each, whatever this machine has."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        node = {"num_cpus": 2, "object_store_memory": MEMORY, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        try:
            nodes.add_node(num_cpus=2, object_store_memory=MEMORY)
            ray.init(nodes.address, log_to_driver=False, logging_level="warning")
            yield Ray(nodes.address, port)
            serve.shutdown()
        finally:
            ray.shutdown()
            nodes.shutdown()
