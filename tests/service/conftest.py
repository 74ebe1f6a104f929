"""One real service for all tests that only talk to it."""

from collections.abc import Iterator
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
from tests.servers import encoded, serving


@pytest.fixture(scope="session")
def service(tiny_weights: Path, _no_settings_from_outside: None) -> Service:
    """The tiny weights on a CPU, with limits that are easily passed; started by `client`."""
    return build_service(
        Settings(
            weights=tiny_weights,
            device="cpu",
            engine="thread",
            max_images=64,
            max_pixels=1_000_000,
            max_body_bytes=2_000_000,
        )
    )


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of a real server around `service`."""
    with serving(service) as client:
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
