"""A few pictures through stages that are about to be imported: what answers depend on, and what they are."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.calibration.crossfit import log_probabilities
from msmlp.model.errors import ConfigError
from msmlp.model.export.folder import exact_backend
from msmlp.model.imported import ImportedCascade
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import Weights

NEAR, NEAR_SHARE = 1e-2, 5e-2
"""By how much probabilities may differ, and as a share of the picture's largest. Rounding makes 1e-5 of it, and up to
1e-2 in float16."""
SAME = 5e-3
"""By what share the answers of a stage may differ from probabilities."""

Answers = NDArray[np.float32]
"""Probabilities at temperature 1, [pictures, K, classes]."""


def backend_of(weights: Weights, batch: int) -> StageBackend:
    plain = Exits((1.0,) * len(weights.manifest.cascade.stages))
    return exact_backend(weights, BackendSettings("cpu", capacity=batch, max_batch=batch, exits=plain))


def check_alone(weights: Weights, pixels: NDArray[np.uint8]) -> Answers:
    """The answers; ConfigError if a picture's depend on its company or on chance."""
    backend = backend_of(weights, len(pixels))  # one for both: chance begins anew in another
    together = run_every_exit(backend, pixels).probabilities
    alone = np.concatenate([run_every_exit(backend, each[None]).probabilities for each in pixels])
    apart, largest = np.abs(together - alone).max(axis=2), together.max(axis=2)
    for k in range(together.shape[1]):
        share = float((apart[:, k] / largest[:, k]).max())
        if apart[:, k].max() > NEAR or share > NEAR_SHARE:
            raise ConfigError(
                f"stage {k + 1} answers differently for a picture alone than in a batch, by {100 * share:.0f} % of its "
                "largest probability; expected a graph for inference, without dropout or norms over the batch"
            )
    return together


def with_probabilities(weights: Weights, pixels: NDArray[np.uint8], found: Answers) -> ImportedCascade:
    """The cascade, with stages marked whose answers are >= 0 with the sum 1; `found` has those of unmarked stages."""
    cascade = weights.manifest.cascade
    assert isinstance(cascade, ImportedCascade)
    manifest = weights.manifest.model_copy(update={"cascade": _marked(cascade, [True] * len(cascade.stages))})
    shares = run_every_exit(backend_of(replace(weights, manifest=manifest), len(pixels)), pixels).probabilities
    # A softmax of p has log(softmax(p)) = p + a constant. Of other answers, `shares` are something else.
    wanted = _centred(shares)
    apart = np.abs(_centred(log_probabilities(found)) - wanted).max(axis=(0, 2))
    return _marked(cascade, (apart < SAME * np.abs(wanted).max(axis=(0, 2))).tolist())


def _marked(cascade: ImportedCascade, which: list[bool]) -> ImportedCascade:
    marks = zip(cascade.stages, which, strict=True)
    stages = tuple(stage.model_copy(update={"probabilities": mark}) for stage, mark in marks)
    return cascade.model_copy(update={"stages": stages})


def _centred(values: NDArray[Any]) -> NDArray[Any]:
    centred: NDArray[Any] = values - values.mean(axis=2, keepdims=True)
    return centred
