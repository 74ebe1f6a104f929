import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msmlp.model.calibration.crossfit import (
    BOUNDS,
    FOLDS,
    fit_temperature,
    fit_temperatures,
    folds_of,
    held_out,
    log_probabilities,
    refitted,
    tempered,
)
from msmlp.model.calibration.solvers import best_within, joint_frontier, thinned
from msmlp.model.exits.policies import EXIT_POLICIES
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.calibration import Table
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


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def loss(probabilities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float, prior: float = 1) -> float:
    """The mean negative log-likelihood with `prior` more images spread over all classes, as a plain formula."""
    logs = log_probabilities(probabilities)
    scaled = logs / temperature
    lost = np.logaddexp.reduce(scaled, axis=1)[:, None] - scaled
    count = len(labels)
    classes = logs.shape[1]
    target = (count * np.eye(classes)[labels] + prior / classes) / (count + prior)
    return float((target * lost).sum(axis=1).mean())


def drawn(seed: int, images: int, classes: int, sharpness: float, skill: float) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes))
    labels = np.where(rng.random(images) < skill, logits.argmax(axis=1), rng.integers(0, classes, images))
    return softmax(sharpness * logits).astype(np.float32), labels


PROBLEMS = st.builds(
    drawn,
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(2, 10),
    st.sampled_from([0.01, 0.3, 1.0, 5.0, 200.0]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)


@given(PROBLEMS)
def test_no_temperature_within_the_bounds_fits_better(problem: tuple[NDArray, NDArray]) -> None:
    probabilities, labels = problem
    fitted = fit_temperature(probabilities, labels)
    assert BOUNDS[0] <= fitted <= BOUNDS[1]
    for other in (1.0, *np.geomspace(*BOUNDS, 25)):
        assert loss(probabilities, labels, fitted) <= loss(probabilities, labels, other) + 1e-9


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(true: float) -> None:
    """Labels drawn from a softmax; the exit says it `true` times too sharply."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    labels = (softmax(logits).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(softmax(true * logits).astype(np.float32), labels) == pytest.approx(true, rel=0.05)


def test_every_exit_has_its_own() -> None:
    (sharp, labels), (flat, _) = drawn(1, 500, 4, 9.0, 0.6), drawn(1, 500, 4, 0.9, 0.6)
    temperatures = fit_temperatures(np.stack([sharp, flat], axis=1), labels)
    assert temperatures == (fit_temperature(sharp, labels), fit_temperature(flat, labels))
    # The same logits ten times as sharp need ten times the temperature.
    assert temperatures[0] == pytest.approx(10 * temperatures[1], rel=1e-3)


def test_always_wrong_stays_within_bounds() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    assert fit_temperature(probabilities, np.array([1, 0])) == BOUNDS[1]
    assert BOUNDS[0] <= fit_temperature(np.full((3, 4), 0.25, np.float32), np.array([0, 1, 2])) <= BOUNDS[1]


@pytest.mark.parametrize("images", [12, 1200])
def test_always_right_is_no_proof_of_never_wrong(images: int) -> None:
    """An exit was right on all the images: it is taken to be wrong once in one image more, by a class at random."""
    labels = np.arange(images) % 3
    probabilities = np.where(np.eye(3, dtype=bool)[labels], 0.98, 0.01).astype(np.float32)
    fitted = fit_temperature(probabilities, labels)
    assert BOUNDS[0] < fitted < BOUNDS[1]
    wrong = 1 - softmax(log_probabilities(probabilities) / fitted).max(axis=1)
    assert wrong == pytest.approx(2 / 3 / (images + 1), rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 9.0])
def test_thousands_of_images_decide_alone(sharpness: float) -> None:
    """The plain likelihood, which has one maximum, has it within half a percent."""
    probabilities, labels = drawn(2, 5000, 10, sharpness, 0.8)
    ratios = np.linspace(0.98, 1.02, 41)
    fitted = fit_temperature(probabilities, labels)
    plain = ratios[np.argmin([loss(probabilities, labels, ratio * fitted, prior=0) for ratio in ratios])]
    assert plain == pytest.approx(1, abs=4e-3)


def test_the_more_images_are_right_the_surer() -> None:
    probabilities = np.array([[0.98, 0.01, 0.01]], dtype=np.float32)
    fitted = [fit_temperature(probabilities.repeat(n, axis=0), np.zeros(n, int)) for n in (1, 3, 10, 100, 5000)]
    assert fitted == sorted(fitted, reverse=True)
    assert fitted[0] > 1 > fitted[-1]
