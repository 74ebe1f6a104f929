from pathlib import Path

import pytest

from msmlp.model.evaluate import Measured, measure


@pytest.fixture(scope="session")
def measured(tiny_weights: Path, digits_folder: Path) -> Measured:
    """The digits' test images through the tiny cascade."""
    return measure(tiny_weights, digits_folder, "test", "cpu")
