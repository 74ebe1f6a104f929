"""Real services for the tests that only talk to them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.calibration.solvers import survivor_conditional
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings
from tests.fakes import PATIENCE_SECONDS
from tests.processes import LAYOUTS, Served
from tests.servers import encoded, serving

LIMITS = {"max_images": 64, "max_pixels": 1_000_000, "max_request_pixels": 10_000_000, "max_body_bytes": 2_000_000}
"""Easily passed."""


@pytest.fixture(scope="session")
def service(tiny_weights: Path, _no_settings_from_outside: None) -> Service:
    """The tiny weights on a CPU, within `LIMITS`; started by `own_client`."""
    return build_service(
        Settings(
            weights=tiny_weights,
            device="cpu",
            engine="thread",
            **LIMITS,
        )
    )


@pytest.fixture(scope="session")
def own_client(service: Service) -> Iterator[httpx.Client]:
    """A client of a real server around `service`, in this process."""
    with serving(service) as client:
        yield client


@pytest.fixture(scope="module", params=LAYOUTS)
def client(request: pytest.FixtureRequest, serve_as: Callable[..., Served]) -> Iterator[httpx.Client]:
    """A client of such a server in processes of its own; `own_client` is for tests that patch it."""
    options = [word for name, limit in LIMITS.items() for word in (f"--{name.replace('_', '-')}", str(limit))]
    served = serve_as(request.param, *options)
    with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def digit_files(digits: Any) -> list[bytes]:
    """The digits' test images as PNG files, which decode to their very pixels."""
    return [encoded(pixels) for pixels in digits.test]


@pytest.fixture(scope="session")
def in_process(tiny_weights: Path, digits: Any) -> Outputs:
    """What the model says of the digits' test images without a server."""
    weights = load_weights(tiny_weights)
    temperatures = load_calibration(weights).file.temperatures
    backend = StagedBackend(weights, BackendSettings("cpu", capacity=64, exits=Exits(temperatures)))
    return run_every_exit(backend, digits.test)


@pytest.fixture(scope="session")
def parting(in_process: Outputs) -> list[float]:
    """Thresholds that part the first 64 of them among all exits, however the training went."""
    return survivor_conditional(in_process.scores[:64], np.array([0.4, 0.3, 0.3])).tolist()
