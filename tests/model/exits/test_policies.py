import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.model.exits.policies import EXIT_POLICIES, entropy, exit_policy, margin, max_probability

# Logits, so that the rows are probabilities; large ones saturate, equal ones tie.
LOGITS = st.integers(2, 12).flatmap(
    lambda classes: arrays(
        np.float32, st.tuples(st.integers(1, 20), st.just(classes)), elements=st.sampled_from([-200, -3, 0, 0.5, 3, 90])
    )
)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()


@pytest.mark.parametrize("name", EXIT_POLICIES)
@given(logits=LOGITS)
def test_a_score_lies_between_0_and_1_and_is_the_same_in_torch(name: str, logits: NDArray[np.float32]) -> None:
    probabilities = softmax(logits)
    score = exit_policy(name)(probabilities)
    assert score.shape == (len(logits),)
    assert ((score >= 0) & (score <= 1)).all()
    served = exit_policy(name)(torch.from_numpy(probabilities), torch)
    assert served.dtype == torch.float32
    assert served.numpy() == pytest.approx(score, abs=1e-6)


@given(logits=LOGITS)
def test_scores_by_plain_arithmetic(logits: NDArray[np.float32]) -> None:
    for row, probabilities in enumerate(softmax(logits).tolist()):
        first, second = sorted(probabilities, reverse=True)[:2]
        information = -sum(p * math.log(p) for p in probabilities if p > 0)
        one = softmax(logits)[row : row + 1]
        assert max_probability(one)[0] == first
        assert margin(one)[0] == pytest.approx(first - second, abs=1e-6)
        assert entropy(one)[0] == pytest.approx(1 - information / math.log(len(probabilities)), abs=1e-5)


@pytest.mark.parametrize("name", EXIT_POLICIES)
def test_certainty_scores_1_and_ignorance_least(name: str) -> None:
    probabilities = np.array([[0, 1, 0, 0], [0.25] * 4, [0.1, 0.6, 0.2, 0.1]], dtype=np.float32)
    certain, ignorant, between = exit_policy(name)(probabilities)
    assert certain == 1
    assert ignorant == pytest.approx(0.25 if name == "max-probability" else 0, abs=1e-6)
    assert ignorant < between < certain


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(OptionError, match="'oracle' is unknown; expected one of max-probability, margin, entropy"):
        exit_policy("oracle")
