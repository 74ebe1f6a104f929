"""One model in-process and one service of the same weights and settings, for all tests that only ask them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import msmlp
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.servers import encoded, serving

SETTINGS: dict[str, Any] = {"device": "cpu", "engine": "thread", "max_images": 40, "brownout_ms": 0, "shadow": 0}


@pytest.fixture(scope="session")
def model(tiny_weights: Path, _no_settings_from_outside: None) -> Iterator[msmlp.Model]:
    with msmlp.load(tiny_weights, **SETTINGS) as model:
        yield model


@pytest.fixture(scope="session")
def url(tiny_weights: Path, _no_settings_from_outside: None) -> Iterator[str]:
    """Where the service is."""
    with serving(build_service(Settings(weights=tiny_weights, **SETTINGS))) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def digit_files(digits: Any) -> list[bytes]:
    """The digits' test images as PNG files, which decode to their very pixels."""
    return [encoded(pixels) for pixels in digits.test]
