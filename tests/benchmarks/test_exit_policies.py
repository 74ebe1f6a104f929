from pathlib import Path

import numpy as np
import pytest

from benchmarks.exit_policies import BASELINE, BUDGETS, compare
from msmlp.model.policies import FITTED
from msmlp.model.scores import EXIT_POLICIES
from msmlp.model.weights import load_calibration, load_weights


def test_policies_are_compared_on_the_same_images_at_the_same_cost(tiny_weights: Path, cifar10_folder: Path) -> None:
    document = compare(tiny_weights, cifar10_folder, "cpu")
    calibration = load_calibration(load_weights(tiny_weights))
    assert document["images"] == calibration.file.images
    assert set(document["policies"]) == {*EXIT_POLICIES, *FITTED}
    assert len(document["budgets_gflops"]) == BUDGETS
    first_exit = calibration.expect((0.0, 0.0)).accuracy
    baseline = document["policies"][BASELINE]
    for policy in document["policies"].values():
        # The cheapest budget lets everyone leave at the first exit, whatever the score.
        assert policy["in_sample"][0] == policy["held_out"][0] == pytest.approx(first_exit)
        assert policy["in_sample"] == sorted(policy["in_sample"])
        assert policy["gain"] == pytest.approx((np.array(policy["held_out"]) - baseline["held_out"]).tolist())
        for gain, (low, high) in zip(policy["gain"], policy["gain_interval"], strict=True):
            assert low <= gain <= high
    assert set(baseline["gain"]) == set(baseline["gain_standard_error"]) == {0.0}
