"""The graphs beside the shipped weights: they are what a machine without torch serves."""

from pathlib import Path

import pytest

from msmlp.model.weights import load_calibration, load_graphs, load_weights

SHIPPED = Path(__file__).resolve().parents[3] / "weights"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cifar10-s", "float32"),
        ("cifar10-s", "int8"),
        ("cifar100-s", "float32"),
    ],
)
def test_they_were_made_from_these_weights_and_this_calibration(name: str, dtype: str) -> None:
    weights = load_weights(SHIPPED / name)
    assert len(load_graphs(weights, load_calibration(weights), dtype)) == len(weights.manifest.cascade.stages)
