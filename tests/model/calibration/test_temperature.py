import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msmlp.model.calibration.crossfit import BOUNDS, fit_temperature, fit_temperatures, log_probabilities


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def loss(probabilities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float, prior: float = 1) -> float:
    """The mean negative log-likelihood with `prior` images more that are for no class, written anew."""
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
