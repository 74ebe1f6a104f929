"""Servers for the tests that only talk to one."""

from collections.abc import Callable

import pytest

from tests.processes import LAYOUTS, Served


@pytest.fixture(scope="module", params=LAYOUTS)
def served(request: pytest.FixtureRequest, serve_as: Callable[..., Served]) -> Served:
    """In every layout; it listens for gRPC too."""
    return serve_as(request.param, "--grpc-port", "0")
