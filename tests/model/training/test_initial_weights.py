"""Training that starts from trained weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from msmlp.model.errors import ConfigError, OptionError, WeightsError
from msmlp.model.training.trainer import TrainOptions, train
from msmlp.model.weights import load_weights

Run = Callable[..., TrainOptions]


@pytest.fixture
def first(short_run: Run) -> Path:
    return train(short_run(epochs=2))


def test_no_epoch_leaves_the_very_weights(first: Path, short_run: Run) -> None:
    weights, again = load_weights(first), load_weights(train(short_run(epochs=0, init=first, seed=0)))
    assert all(np.array_equal(weights.state[name], again.state[name]) for name in weights.state)
    assert again.manifest.training["init"] == {"name": weights.manifest.name, "sha256": weights.sha256}


def test_an_epoch_goes_on_from_there(first: Path, short_run: Run) -> None:
    """At a rate of nearly nothing the weights stay where they started."""
    slow = {"lr": 1e-7, "ema": 0}
    weights = load_weights(first)
    near, far = (load_weights(train(short_run(epochs=1, init=start, changes=slow))) for start in (first, None))
    for name, value in weights.state.items():
        assert np.allclose(near.state[name], value, atol=1e-5)
    assert not all(np.allclose(far.state[name], value, atol=1e-2) for name, value in weights.state.items())


def test_another_cascade_is_refused_by_what_differs(first: Path, short_run: Run) -> None:
    with pytest.raises(OptionError, match=r"init: .* is another cascade: its reuse_norm differ"):
        train(short_run(init=first, changes={"reuse": "all", "reuse_norm": False}))


def test_weights_that_may_have_seen_the_validation_images_are_refused(first: Path, short_run: Run) -> None:
    with pytest.raises(OptionError, match=r"init: .*other validation images.*--seed"):
        train(short_run(seed=1, init=first))


def test_other_classes_are_refused(tiny_weights: Path, short_run: Run) -> None:
    with pytest.raises(OptionError, match="knows other classes"):
        train(short_run(init=tiny_weights))


def test_a_teacher_starts_afresh(first: Path, few_digits: Path, tmp_path: Path) -> None:
    options = TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=1, init=first, changes={"image_size": 16})
    with pytest.raises(ConfigError, match="a teacher starts from random weights"):
        train(options)


def test_what_is_no_weights_folder_is_refused(tmp_path: Path, short_run: Run) -> None:
    with pytest.raises(WeightsError):
        train(short_run(init=tmp_path))
