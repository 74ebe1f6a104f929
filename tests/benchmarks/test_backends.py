"""What the comparison of backends works out."""

import numpy as np

from benchmarks.backends import agreement, stage_times
from msmlp.model.data import Split
from msmlp.model.offline import Outputs
from tests.fakes import FakeBackend


def outputs(*probabilities: list[list[float]]) -> Outputs:
    """Of images [N], each with probabilities [K, classes]."""
    each = np.array(probabilities, dtype=np.float32)
    return Outputs(each.max(axis=2), each)


def test_images_that_leave_elsewhere_or_with_another_label_are_counted() -> None:
    early, late, unsure = [[0.9, 0.1], [0.6, 0.4]], [[0.6, 0.4], [0.1, 0.9]], [[0.79, 0.21], [0.3, 0.7]]
    other = [[0.81, 0.19], [0.3, 0.7]]
    images = Split(np.zeros((3, 2, 2, 3), dtype=np.uint8), np.array([0, 1, 1]), np.zeros((3, 32), dtype=np.uint8))
    found = agreement({"a": outputs(early, late, unsure), "b": outputs(early, late, other)}, images, (0.8,))
    a, b = found["by_backend"]["a"], found["by_backend"]["b"]
    assert (a["other_exits"], a["other_labels"], a["largest_difference"], a["point_accuracy"]) == (0, 0, 0, 1)
    assert (b["other_exits"], b["other_labels"]) == (1, 1)
    assert b["largest_difference"] == np.float32(0.81) - np.float32(0.79)
    assert b["point_accuracy"] == 2 / 3
    assert a["accuracy"] == [1 / 3, 1]


def test_every_bucket_has_a_time_per_stage_for_every_backend() -> None:
    fakes = {name: FakeBackend(capacity=8, max_batch=8) for name in ("a", "b")}
    images = np.zeros((8, *fakes["a"].image_shape), dtype=np.uint8)
    rows = stage_times(fakes, images, rounds=2, buckets=(1, 8))
    assert [row["bucket"] for row in rows] == [1, 8]
    assert all(len(row[name]) == fakes[name].stages and min(row[name]) >= 0 for row in rows for name in fakes)
    assert len(fakes["a"].admit(images)) == 8
