"""What a few pictures show of stages."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.model.errors import ConfigError
from msmlp.model.importing import trial


def test_company_shows_in_probabilities_that_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand classes none may have more than a hundredth."""

    def run(backend: Any, pixels: NDArray[np.uint8]) -> Any:
        made = np.full((len(pixels), 2, 1000), 1e-3, np.float32)
        made[:, 1, 3] = 2e-3 if len(pixels) > 1 else 2.3e-3
        return SimpleNamespace(probabilities=made)

    monkeypatch.setattr(trial, "run_every_exit", run)
    monkeypatch.setattr(trial, "backend_of", lambda *_: None)
    weights: Any = None
    with pytest.raises(ConfigError, match=r"stage 2 answers differently for a picture alone than in a batch, by 15 %"):
        trial.check_alone(weights, np.zeros((4, 1), np.uint8))
