import numpy as np
import pytest

from msmlp.model.calibration.crossfit import FOLDS, Fold, folds_of, held_out, refitted
from msmlp.model.calibration.fit import Fit
from msmlp.model.calibration.joint import joint_frontier
from msmlp.model.calibration.settings import Table, best_within, thinned
from msmlp.model.errors import DataError
from msmlp.model.exits import exit_of
from msmlp.model.policies import FITTED
from msmlp.model.scores import EXIT_POLICIES
from tests.model.calibration.tables import folds, held_apart, over_many_tables, table


@over_many_tables
def test_every_image_leaves_where_thresholds_chosen_without_it_say(measured: Table) -> None:
    apart = held_apart(measured)
    if not apart:
        return
    costs = [setting.cost for setting in thinned(joint_frontier(measured))[:6]]
    found = held_out(apart, costs)
    assert found.left.shape == (len(costs), len(measured.scores))
    assert (found.correct == measured.correct).all()
    for fold in apart:
        others = joint_frontier(measured.take(~fold.held))
        for row, cost in zip(found.left, costs, strict=True):
            thresholds = best_within(others, cost).thresholds
            assert row[fold.held].tolist() == exit_of(measured.scores[fold.held], np.array(thresholds)).tolist()


def test_an_image_has_no_say_in_where_it_leaves() -> None:
    measured = table(3, 60, 5, False, 0.0)
    costs, held = [setting.cost for setting in thinned(joint_frontier(measured))], folds(measured) == 2
    other = Table(measured.scores, measured.correct.copy(), measured.costs)
    other.correct[held] ^= True
    ours, theirs = (held_out(held_apart(each), costs) for each in (measured, other))
    assert (ours.left[:, held] == theirs.left[:, held]).all()
    assert (ours.right()[:, held] != theirs.right()[:, held]).all()


def test_chance_is_not_taken_for_skill() -> None:
    """Correctness by coin toss: in sample the best for a budget looks better than chance, held out it does not."""
    optimism, honest = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, correct = rng.random((200, 3), dtype=np.float32), rng.random((200, 3)) < 0.5
        measured = Table(scores, correct, np.array([1.0, 2.0, 3.0]))
        best = best_within(joint_frontier(measured), 2.0)
        optimism.append(best.accuracy - 0.5)
        honest.append(held_out(held_apart(measured), [2.0]).right().mean() - 0.5)
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


@pytest.mark.parametrize("policy", [*EXIT_POLICIES, *FITTED])
def test_scores_of_held_out_images_are_by_what_the_others_say(policy: str) -> None:
    given, labels = probabilities(60)
    parts = np.arange(60) % 5
    found = refitted(policy, given, labels, COSTS, parts)
    assert [fold.held.tolist() for fold in found] == [(parts == f).tolist() for f in range(5)]
    for fold in found:
        fit = Fit.of(policy, given[~fold.held], labels[~fold.held])
        for ours, rows in ((fold.own, fold.held), (fold.others, ~fold.held)):
            expected = fit.table(given[rows], labels[rows], COSTS)
            assert np.array_equal(ours.scores, expected.scores)
            assert np.array_equal(ours.correct, expected.correct)


@pytest.mark.parametrize("policy", FITTED)
def test_the_labels_of_held_out_images_change_nothing_of_their_scores(policy: str) -> None:
    given, labels = probabilities(60)
    parts = np.arange(60) % 5
    wrong = np.where(parts == 1, (labels + 1) % 4, labels)
    ours, theirs = (refitted(policy, given, each, COSTS, parts) for each in (labels, wrong))
    assert np.array_equal(ours[1].own.scores, theirs[1].own.scores)
    assert not np.array_equal(ours[0].own.scores, theirs[0].own.scores)


def test_images_that_must_not_be_fitted_to_are_not() -> None:
    given, labels = probabilities(60)
    parts, fitting = np.arange(60) % 5, np.arange(60) % 2 == 0
    wrong = np.where(fitting, labels, (labels + 1) % 4)
    ours, theirs = (refitted("gate", given, each, COSTS, parts, fitting) for each in (labels, wrong))
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.own.scores, other.own.scores)
    assert refitted("gate", given, labels, COSTS, parts, np.zeros(60, dtype=bool)) == []


def test_one_fold_alone_holds_nothing_out() -> None:
    given, labels = probabilities(1)
    assert refitted("max-probability", given, labels, COSTS, np.zeros(1, dtype=np.int64)) == []
    with pytest.raises(DataError, match="too few validation images"):
        held_out([], [1.0])


def test_a_policy_that_fits_chance_is_found_out() -> None:
    """Exits that know nothing: a gate fitted to few images looks good on them, and is not."""
    seen, unseen = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        given = rng.dirichlet(np.ones(2), size=(40, 2)).astype(np.float32)
        labels = rng.integers(0, 2, 40)
        everything = Fit.of("gate", given, labels).table(given, labels, np.array([1.0, 2.0]))
        seen.append(held_out([Fold(np.ones(40, dtype=bool), everything, everything)], [1.5]).right().mean())
        apart = refitted("gate", given, labels, np.array([1.0, 2.0]), np.arange(40) % 5)
        unseen.append(held_out(apart, [1.5]).right().mean())
    assert np.mean(seen) > 0.55
    assert abs(np.mean(unseen) - 0.5) < 0.05


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
