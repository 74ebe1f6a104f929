"""Fitted exit policies: the minimum is one, and what is learned is what there is to learn."""

from typing import Any

import numpy as np
import pytest

from msmlp.model.calibration.fitting import fit_policy
from msmlp.model.policies import run_policies, stage_policies


def softmax(logits: Any) -> Any:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def images(number: int, noise: tuple[float, ...], seed: int = 0) -> tuple[Any, Any]:
    """Exits that see the label through independent noise: probabilities [N, K, 4], labels [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, number)
    clean = 3.0 * np.eye(4)[labels]
    # Logits whose noise is Gaussian with variance v hold the label's likelihood ratio when divided by v.
    logits = [3.0 * (clean + rng.normal(size=clean.shape) * v) / v**2 for v in noise]
    return softmax(np.stack(logits, axis=1)), labels


def log_loss(answers: Any, labels: Any) -> float:
    return float(-np.log(np.maximum(answers[np.arange(len(labels)), -1, labels], 1e-30)).mean())


def test_independent_exits_are_multiplied() -> None:
    probabilities, labels = images(4000, (3.0, 3.0, 3.0))
    weights = fit_policy("ensemble", probabilities, labels)["weights"]
    # Independent evidence adds up: every weight is 1.
    assert np.array(weights) == pytest.approx(np.ones((2, 2)), abs=0.12)
    fresh, truth = images(4000, (3.0, 3.0, 3.0), seed=1)
    answers, _ = run_policies(stage_policies("ensemble", {"weights": weights}, 3), fresh)
    assert log_loss(answers, truth) < 0.8 * log_loss(fresh, truth)
    assert (answers[:, 2].argmax(1) == truth).mean() > (fresh[:, 2].argmax(1) == truth).mean() + 0.03


def test_an_exit_that_knows_nothing_is_ignored() -> None:
    probabilities, labels = images(4000, (3.0, 3.0))
    probabilities[:, 0] = softmax(np.random.default_rng(5).normal(size=(4000, 4)))
    [[own, before]] = fit_policy("ensemble", probabilities, labels)["weights"]
    assert own == pytest.approx(1, abs=0.1)
    assert before == pytest.approx(0, abs=0.1)


def test_the_minimum_is_one() -> None:
    probabilities, labels = images(500, (3.0, 2.0))
    [best] = fit_policy("ensemble", probabilities, labels)["weights"]

    def loss(weights: Any) -> float:
        answers, _ = run_policies(stage_policies("ensemble", {"weights": [weights]}, 2), probabilities)
        pull = 0.5 * ((weights[0] - 1) ** 2 + weights[1] ** 2) / len(labels)
        return log_loss(answers, labels) + pull

    for step in ([0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]):
        assert loss([best[0] + step[0], best[1] + step[1]]) > loss(best)


def test_a_gate_lets_those_go_first_that_lose_least() -> None:
    probabilities, labels = images(6000, (4.0, 2.0))
    policies = stage_policies("gate", fit_policy("gate", probabilities, labels), 2)
    fresh, truth = images(6000, (4.0, 2.0), seed=2)
    _, scores = run_policies(policies, fresh)
    right = fresh.argmax(axis=2) == truth[:, None]
    gain = right[:, 0].astype(float) - right[:, 1]
    order = np.argsort(scores[:, 0])
    surest, least = gain[order[-2000:]].mean(), gain[order[:2000]].mean()
    assert surest > least + 0.1
    # The score estimates (1 + gain) / 2.
    assert scores[:, 0].mean() == pytest.approx((1 + gain.mean()) / 2, abs=0.02)


@pytest.mark.parametrize("name", ["ensemble", "gate"])
def test_few_images_decide_little_and_extremes_stay_finite(name: str) -> None:
    probabilities = np.zeros((3, 3, 4), dtype=np.float32)
    probabilities[..., 0] = 1
    for labels in (np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.int64)):
        parameters = fit_policy(name, probabilities, labels)
        _, scores = run_policies(stage_policies(name, parameters, 3), probabilities)
        assert np.isfinite(scores).all()


def test_plain_policies_have_nothing_to_fit() -> None:
    probabilities, labels = images(10, (3.0, 3.0))
    assert fit_policy("margin", probabilities, labels) == {}
