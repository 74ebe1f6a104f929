"""Tables of scores and correctness for the tests of the frontier, the degenerate ones among them."""

from collections.abc import Callable

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from msmlp.model.calibration.crossfit import Fold
from msmlp.model.weights.calibration import Table


def table(exits: int, images: int, seed: int, ties: bool, skill: float) -> Table:
    """Deeper exits are not always better; `skill` of -9 is always wrong, 9 always right."""
    rng = np.random.default_rng(seed)
    scores = rng.random((images, exits))
    if ties:
        # The ends among them: a score of 1 meets the threshold that means "never".
        scores = np.round(2 * scores) / 2
    correct = rng.random((images, exits)) < np.clip(scores + skill, 0, 1)
    return Table(scores.astype(np.float32), correct, np.cumsum(rng.random(exits) + 0.1))


# Work grows fast with K: mostly 2 exits, some 3, and one table of 4 a test.
TABLES = st.builds(
    table,
    st.sampled_from([2, 2, 1, 2, 3]),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([-9, -0.3, 0.0, 0.3, 9]),
)


def over_many_tables(test: Callable[[Table], None]) -> Callable[[Table], None]:
    """A hypothesis test over TABLES."""
    return example(table(4, 60, 7, False, 0.1))(given(TABLES)(test))


def folds(measured: Table) -> np.ndarray:
    """Five folds by position."""
    return np.arange(len(measured.scores)) % 5


def right(measured: Table, left: np.ndarray) -> np.ndarray:
    """Whether each image is right where it leaves, exits 1...K [costs, N]."""
    return measured.correct[np.arange(len(measured.correct)), left - 1]


def held_apart(measured: Table) -> list[Fold]:
    """These folds, of a table whose scores nothing was fitted for; none where there is one image."""
    parts = folds(measured)
    if len(set(parts.tolist())) < 2:
        return []
    return [Fold(parts == f, measured) for f in np.unique(parts)]
