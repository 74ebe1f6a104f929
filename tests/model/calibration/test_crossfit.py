import numpy as np
import pytest

from model.calibration.crossfit import FOLDS, folds_of, held_out_exits
from model.calibration.joint import joint_frontier
from model.calibration.settings import Table, best_within, thinned
from model.exits import exit_of
from tests.model.calibration.tables import folds, over_many_tables, table


@over_many_tables
def test_every_image_leaves_where_thresholds_chosen_without_it_say(measured: Table) -> None:
    settings = thinned(joint_frontier(measured))[:6]
    parts = folds(measured)
    left = held_out_exits(measured, settings, parts)
    assert left.shape == (len(settings), len(parts))
    if len(set(parts.tolist())) < 2:
        return
    for fold in set(parts.tolist()):
        others = joint_frontier(measured.take(parts != fold))
        for row, setting in zip(left, settings, strict=True):
            thresholds = best_within(others, setting.cost).thresholds
            assert row[parts == fold].tolist() == exit_of(measured.scores[parts == fold], np.array(thresholds)).tolist()


def test_an_image_has_no_say_in_where_it_leaves() -> None:
    measured = table(3, 60, 5, False, 0.0)
    settings, parts = thinned(joint_frontier(measured)), folds(measured)
    other = Table(measured.scores, measured.correct.copy(), measured.costs)
    other.correct[parts == 2] ^= True
    held = parts == 2
    assert (held_out_exits(measured, settings, parts)[:, held] == held_out_exits(other, settings, parts)[:, held]).all()


def test_chance_is_not_taken_for_skill() -> None:
    """Correctness by coin toss: in sample the best for a budget looks better than chance, held out it does not."""
    optimism, honest = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, correct = rng.random((200, 3), dtype=np.float32), rng.random((200, 3)) < 0.5
        measured = Table(scores, correct, np.array([1.0, 2.0, 3.0]))
        best = best_within(joint_frontier(measured), 2.0)
        [left] = held_out_exits(measured, [best._replace(cost=2.0)], folds(measured))
        optimism.append(best.accuracy - 0.5)
        honest.append(correct[np.arange(200), left - 1].mean() - 0.5)
    assert np.mean(optimism) > 0.04
    assert abs(np.mean(honest)) < 0.02


def test_one_fold_alone_is_measured_as_it_is() -> None:
    measured = table(3, 1, 0, False, 0.1)
    settings = joint_frontier(measured)
    left = held_out_exits(measured, settings, np.zeros(1, dtype=np.int64))
    assert left.tolist() == [exit_of(measured.scores, np.array(s.thresholds)).tolist() for s in settings]


def test_folds_follow_the_images_whatever_their_order() -> None:
    identities = np.random.default_rng(0).integers(0, 256, (52, 32), dtype=np.uint8)
    identities[1] = identities[0]
    parts = folds_of(identities)
    assert parts[0] == parts[1]
    order = np.random.default_rng(1).permutation(52)
    assert folds_of(identities[order]).tolist() == parts[order].tolist()
    assert np.bincount(parts, minlength=FOLDS).min() >= 10
    halves = folds_of(identities, 2)
    assert np.bincount(halves).min() >= 25
    assert halves[0] == halves[1]
    assert folds_of(identities[order], 2).tolist() == halves[order].tolist()
    assert folds_of(identities[:1]).tolist() == pytest.approx([0])
