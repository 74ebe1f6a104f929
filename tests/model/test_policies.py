"""Exit policies as a stage runs them: plain, ensembled, gated; numpy and torch alike."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from msmlp.model.errors import OptionError
from msmlp.model.policies import ALONE, TOGETHER, Ensemble, Gate, Plain, features, run_policies, stage_policies
from msmlp.model.scores import EXIT_POLICIES

GATES = {"coefficients": [[0.1, -0.2, 0.3, 0.4], [0.5, -0.6, 0.7, 0.8, -0.9, 1.0]]}
ENSEMBLE = {"weights": [[0.8, 0.3], [0.6, 0.7]]}
FITTED = {"ensemble": ENSEMBLE, "gate": GATES}


def softmax(logits: Any) -> Any:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


PROBABILITIES = arrays(np.float32, (4, 3, 5), elements=st.floats(-80, 80, width=32)).map(softmax)


@given(PROBABILITIES)
@pytest.mark.parametrize("name", FITTED)
def test_answers_are_distributions_scores_are_shares_and_torch_agrees(name: str, probabilities: Any) -> None:
    policies = stage_policies(name, FITTED[name], 3)
    answers, scores = run_policies(policies, probabilities)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.allclose(answers.sum(axis=2), 1, atol=1e-5)
    previous: torch.Tensor | None = None
    for k, policy in enumerate(policies):
        previous, score = policy(torch.from_numpy(probabilities[:, k]), previous, torch)
        assert np.allclose(previous, answers[:, k], atol=1e-5)
        assert np.allclose(score, scores[:, k], atol=1e-5)
        assert score.dtype == torch.float32


def test_an_ensemble_is_the_weighted_product_of_all_exits_so_far() -> None:
    p = softmax(np.random.default_rng(0).normal(size=(6, 3, 4)))
    answers, scores = run_policies(stage_policies("ensemble", ENSEMBLE, 3), p)
    second = softmax(0.8 * np.log(p[:, 1]) + 0.3 * np.log(p[:, 0]))
    third = softmax(0.6 * np.log(p[:, 2]) + 0.7 * (0.8 * np.log(p[:, 1]) + 0.3 * np.log(p[:, 0])))
    assert np.allclose(answers[:, 0], p[:, 0])
    assert np.allclose(answers[:, 1], second, atol=1e-6)
    assert np.allclose(answers[:, 2], third, atol=1e-6)
    assert np.allclose(scores, answers.max(axis=2))


def test_a_gate_answers_the_exits_own_and_scores_by_its_features() -> None:
    p = softmax(np.random.default_rng(1).normal(size=(6, 3, 4)))
    answers, scores = run_policies(stage_policies("gate", GATES, 3), p)
    assert np.array_equal(answers, p)
    columns = features(p[:, 1], p[:, 0])
    linear = 0.5 + np.stack(columns, axis=1) @ np.array([-0.6, 0.7, 0.8, -0.9, 1.0])
    assert np.allclose(scores[:, 1], 1 / (1 + np.exp(-linear)), atol=1e-6)
    assert np.allclose(scores[:, 2], p[:, 2].max(axis=1))


def test_agreement_and_divergence() -> None:
    one, other = np.array([[0.9, 0.1, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    assert features(one, one)[3:] == [pytest.approx([1.0]), pytest.approx([0.0])]
    agrees, divergence = features(one, other)[3:]
    assert agrees == [0.0]
    # Distributions without a common class are one bit apart.
    assert divergence == pytest.approx([1.0])
    mixed = features(np.array([[0.5, 0.5, 0.0]]), other)[4]
    assert mixed == pytest.approx([1.0])
    half = features(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))[4]
    by_hand = 0.5 * math.log2(1 / 0.75) + 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25))
    assert half == pytest.approx([by_hand])


def test_who_reads_what_the_exit_before_answered() -> None:
    assert [p.reads_previous for p in stage_policies("ensemble", ENSEMBLE, 3)] == [False, True, True]
    assert [p.reads_previous for p in stage_policies("gate", GATES, 3)] == [False, True, False]
    for name in EXIT_POLICIES:
        assert not any(p.reads_previous for p in stage_policies(name, {}, 3))


def test_one_exit_alone_has_nothing_to_decide() -> None:
    assert stage_policies("ensemble", {"weights": []}, 1) == [Plain()]
    assert stage_policies("gate", {"coefficients": []}, 1) == [Plain()]
    assert stage_policies("gate", {"coefficients": [[0.0] * ALONE]}, 2) == [Gate((0.0,) * ALONE), Plain()]
    assert Gate((0.0,) * TOGETHER).reads_previous
    assert Ensemble(1, 0).reads_previous


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("oracle", {}, "'oracle' is not one of max-probability, margin, entropy, ensemble, gate"),
        ("margin", {"weights": [1.0]}, "margin takes no parameters, found weights"),
        ("ensemble", {}, "ensemble takes weights: 2 rows of 2, 2 numbers within"),
        ("ensemble", {"weights": [[1, 0]]}, "2 rows"),
        ("ensemble", {"weights": [[1, 0], [1]]}, "2 rows"),
        ("ensemble", {"weights": [[1, 0], [1, float("nan")]]}, "numbers within ±1000000"),
        ("ensemble", {"weights": [[1, 0], [1, True]]}, "numbers within ±1000000"),
        ("ensemble", {"weights": [[1, 0], [1, 10**400]]}, "numbers within"),
        ("ensemble", {"weights": [[1, 0], [1, 1e300]]}, "numbers within"),
        ("ensemble", {"weights": "12"}, "2 rows"),
        ("ensemble", {**ENSEMBLE, "more": 1}, "2 rows"),
        ("gate", ENSEMBLE, "gate takes coefficients: 2 rows of 4, 6 numbers within"),
        ("gate", {"coefficients": [[0.0] * 6, [0.0] * 6]}, "rows of 4, 6"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name: str, parameters: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        stage_policies(name, parameters, 3)
    assert "\n" not in str(refused.value)
