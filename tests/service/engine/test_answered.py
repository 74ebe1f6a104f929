import numpy as np
import pytest

from msmlp.model.backends.protocol import StageOutput
from msmlp.service.engine.answered import Answered
from msmlp.service.engine.scheduler import Batch
from tests.service.engine.tickets import slots


def batch(stage: int, *where: int) -> Batch:
    return Batch(stage, slots(*where), waited=np.arange(1.0, len(where) + 1), seconds=9.0)


def output(*rows: tuple[float, ...]) -> StageOutput:
    """Probabilities; the scores are a tenth of the first."""
    probabilities = np.array(rows, dtype=np.float32)
    return StageOutput(probabilities[:, 0] / 10, probabilities)


def test_every_slot_keeps_what_each_stage_said_of_its_image() -> None:
    answered = Answered(capacity=8, stages=3, classes=3, largest=4)
    answered.record(batch(0, 5, 2, 7), output((0.1, 0.7, 0.2), (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)), 0.5)
    before = answered.history_of(slots(2, 5))
    answered.record(batch(1, 2), output((0.0, 0.25, 0.75)), 0.25)
    history = answered.history_of(slots(2, 5, 7))
    assert history.shape == (3, 3)
    assert history[:, 0].tolist() == [
        pytest.approx((0.05, 0.5, 2.0, 0.5, 0, 3)),
        pytest.approx((0.01, 0.7, 1.0, 0.5, 1, 3)),
        pytest.approx((0.02, 0.6, 3.0, 0.5, 2, 3)),
    ]
    assert history[0, 1].tolist() == pytest.approx((0.0, 0.75, 1.0, 0.25, 2, 1))
    assert answered.probabilities[[2, 5]].tolist() == [
        pytest.approx([0.0, 0.25, 0.75]),
        pytest.approx([0.1, 0.7, 0.2], rel=1e-6),
    ]
    assert before[0, 1]["batch_size"] == 0, "a copy"


def test_probabilities_may_be_part_of_a_larger_array() -> None:
    whole = output((0.1, 0.9, 5.0, 5.0), (0.8, 0.2, 5.0, 5.0))
    answered = Answered(capacity=4, stages=2, classes=2, largest=2)
    answered.record(batch(1, 3, 0), StageOutput(whole.score, whole.probabilities[:, :2]), 0.1)
    assert answered.probabilities[[3, 0]].tolist() == [pytest.approx([0.1, 0.9]), pytest.approx([0.8, 0.2])]
    assert answered.history_of(slots(3, 0))["class_id"][:, 1].tolist() == [1, 0]
