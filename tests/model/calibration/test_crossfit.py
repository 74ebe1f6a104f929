import numpy as np
import pytest

from msmlp.model.calibration.crossfit import FOLDS, fit_temperatures, folds_of, held_out, refitted, tempered
from msmlp.model.calibration.solvers import Table, best_within, joint_frontier, thinned
from msmlp.model.errors import DataError
from msmlp.model.exits.policies import EXIT_POLICIES
from msmlp.model.exits.rule import exit_of
from tests.model.calibration.tables import folds, held_apart, over_many_tables, right, table


@over_many_tables
def test_every_image_leaves_where_thresholds_chosen_without_it_say(measured: Table) -> None:
    apart = held_apart(measured)
    if not apart:
        return
    costs = [setting.cost for setting in thinned(joint_frontier(measured))[:6]]
    found = held_out(apart, costs)
    assert found.shape == (len(costs), len(measured.scores))
    for fold in apart:
        others = joint_frontier(measured.take(~fold.held))
        for row, cost in zip(found, costs, strict=True):
            thresholds = best_within(others, cost).thresholds
            assert row[fold.held].tolist() == exit_of(measured.scores[fold.held], np.array(thresholds)).tolist()


def test_an_image_has_no_say_in_where_it_leaves() -> None:
    measured = table(3, 60, 5, False, 0.0)
    costs, held = [setting.cost for setting in thinned(joint_frontier(measured))], folds(measured) == 2
    other = Table(measured.scores, measured.correct.copy(), measured.costs)
    other.correct[held] ^= True
    ours, theirs = (held_out(held_apart(each), costs) for each in (measured, other))
    assert (ours[:, held] == theirs[:, held]).all()
    assert (ours[:, ~held] != theirs[:, ~held]).any()


def test_chance_is_not_taken_for_skill() -> None:
    """Correctness by coin toss: in sample the best for a budget looks better than chance, held out it does not."""
    optimism, honest = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, correct = rng.random((200, 3), dtype=np.float32), rng.random((200, 3)) < 0.5
        measured = Table(scores, correct, np.array([1.0, 2.0, 3.0]))
        best = best_within(joint_frontier(measured), 2.0)
        optimism.append(best.accuracy - 0.5)
        honest.append(right(measured, held_out(held_apart(measured), [2.0])).mean() - 0.5)
    assert np.mean(optimism) > 0.04
    assert abs(np.mean(honest)) < 0.02


# --- refitting ---------------------------------------------------------------------------------------------------

COSTS = np.array([1.0, 2.0, 4.0])


def probabilities(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of three exits, each surer and more often right than the one before: [N, 3, 4] and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, images)
    logits = rng.normal(size=(images, 3, 4))
    logits[np.arange(images), :, labels] += np.array([1.0, 2.0, 3.0])
    weights = np.exp(logits)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32), labels


def of(given: np.ndarray, labels: np.ndarray) -> Table:
    """The images' table, at temperature 1."""
    return Table(given.max(axis=2), given.argmax(axis=2) == labels[:, None], COSTS)


@pytest.mark.parametrize("policy", EXIT_POLICIES)
def test_scores_of_held_out_images_are_by_what_the_others_say(policy: str) -> None:
    given, labels = probabilities(60)
    parts = np.arange(60) % 5
    found = refitted(policy, given, labels, of(given, labels), parts)
    assert [fold.held.tolist() for fold in found] == [(parts == f).tolist() for f in range(5)]
    for fold in found:
        answers = tempered(given, fit_temperatures(given[~fold.held], labels[~fold.held]))
        for k in range(3):
            assert np.array_equal(fold.table.scores[:, k], EXIT_POLICIES[policy](answers[:, k]))
        assert np.array_equal(fold.table.correct, answers.argmax(axis=2) == labels[:, None])
        assert np.array_equal(fold.table.costs, COSTS)


def test_the_labels_of_held_out_images_change_nothing_of_their_scores() -> None:
    given, labels = probabilities(60)
    parts = np.arange(60) % 5
    wrong = np.where(parts == 1, (labels + 1) % 4, labels)
    ours, theirs = (refitted("margin", given, each, of(given, each), parts) for each in (labels, wrong))
    assert np.array_equal(ours[1].table.scores, theirs[1].table.scores)
    assert not np.array_equal(ours[0].table.scores, theirs[0].table.scores)


def test_images_that_must_not_be_fitted_to_are_not() -> None:
    given, labels = probabilities(60)
    parts, fitting = np.arange(60) % 5, np.arange(60) % 2 == 0
    wrong = np.where(fitting, labels, (labels + 1) % 4)
    ours, theirs = (refitted("margin", given, each, of(given, each), parts, fitting) for each in (labels, wrong))
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.table.scores, other.table.scores)
    assert refitted("margin", given, labels, of(given, labels), parts, np.zeros(60, dtype=bool)) == []


def test_one_fold_alone_holds_nothing_out() -> None:
    given, labels = probabilities(1)
    assert refitted("max-probability", given, labels, of(given, labels), np.zeros(1, dtype=np.int64)) == []
    with pytest.raises(DataError, match="too few validation images"):
        held_out([], [1.0])


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
