"""Exit policies as a stage runs them: from its probabilities, and those of the exit before, to answer and score.

A plain policy answers the probabilities as they are (model/scores.py). Two are fitted on validation images, with
parameters in calibration.json:

- `ensemble`: exit k answers log q_k = own_k · log p_k + before_k · log q_(k-1), normalised: a product of all exits so
  far. The exit before has summed up those before it, so a slot keeps one set of probabilities.
- `gate`: a logistic gate an exit, over how sure the exit is and how it agrees with the exit before; the answer stays
  the exit's own.

Each is written once, over `xp`, which is numpy or torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from msmlp.model.errors import OptionError
from msmlp.model.scores import EXIT_POLICIES, ExitPolicy, entropy, margin, max_probability

TINY = float(np.finfo(np.float32).tiny)
FITTED = ("ensemble", "gate")
ALONE = 4
"""Features of a gate that has no exit before it: 1, largest probability, margin, entropy."""
TOGETHER = 6
"""With the exit before: agreement and divergence too."""
LARGEST = 1e6
"""No fitted number comes near it; a product with it stays far from what overflows float32."""
LIMIT = 30.0
"""Beyond this a float32 sigmoid is 0 or 1 anyway."""


class StagePolicy(Protocol):
    """What one exit answers, and how sure it is."""

    @property
    def reads_previous(self) -> bool:
        """Whether it needs what the exit before answered."""

    def __call__(self, probabilities: Any, previous: Any, xp: Any = np) -> tuple[Any, Any]:
        """Probabilities [n, classes] of this exit, answers [n, classes] of the exit before where `reads_previous` →
        answer [n, classes], score [n] in [0, 1]."""


@dataclass(frozen=True)
class Plain:
    """The exit's own probabilities, and a score of them alone."""

    score: ExitPolicy = max_probability
    reads_previous = False

    def __call__(self, probabilities: Any, previous: Any = None, xp: Any = np) -> tuple[Any, Any]:
        """See StagePolicy."""
        return probabilities, self.score(probabilities, xp)


@dataclass(frozen=True)
class Ensemble:
    """The weighted geometric mean of the exit and of what the exit before answered."""

    own: float
    before: float
    reads_previous = True

    def __call__(self, probabilities: Any, previous: Any, xp: Any = np) -> tuple[Any, Any]:
        """See StagePolicy."""
        answer = _softmax(self.own * _logs(probabilities, xp) + self.before * _logs(previous, xp), xp)
        return answer, max_probability(answer, xp)


@dataclass(frozen=True)
class Gate:
    """The probability-like score of a logistic regression over `features`."""

    coefficients: tuple[float, ...]

    @property
    def reads_previous(self) -> bool:
        """Whether agreement and divergence are among its features."""
        return len(self.coefficients) == TOGETHER

    def __call__(self, probabilities: Any, previous: Any, xp: Any = np) -> tuple[Any, Any]:
        """See StagePolicy."""
        columns = features(probabilities, previous if self.reads_previous else None, xp)
        total = self.coefficients[0] + sum(c * x for c, x in zip(self.coefficients[1:], columns, strict=True))
        return probabilities, 1 / (1 + xp.exp(-xp.clip(total, -LIMIT, LIMIT)))


def features(probabilities: Any, previous: Any, xp: Any = np) -> list[Any]:
    """A gate's features but the constant, each [n]: the largest probability, the margin, the entropy's score; with an
    exit before, whether it has the same label, and the Jensen-Shannon divergence of the two in bits."""
    columns = [max_probability(probabilities, xp), margin(probabilities, xp), entropy(probabilities, xp)]
    if previous is None:
        return columns
    same = xp.argmax(probabilities, axis=1) == xp.argmax(previous, axis=1)
    middle = _logs((probabilities + previous) / 2, xp)
    halves = [xp.sum(p * (_logs(p, xp) - middle), axis=1) for p in (probabilities, previous)]
    return [*columns, 1.0 * same, (halves[0] + halves[1]) / (2 * math.log(2))]


def stage_policies(name: str, parameters: Mapping[str, Any], exits: int) -> list[StagePolicy]:
    """The policy of every exit.

    Args:
        name: a plain or a fitted policy.
        parameters: of a fitted one, as calibration.json holds them.
        exits: K.

    Raises:
        OptionError: an unknown name, or parameters that do not fit.
    """
    if name in EXIT_POLICIES and not parameters:
        return [Plain(EXIT_POLICIES[name])] * exits
    if name in EXIT_POLICIES:
        raise OptionError("exit policy parameters", f"{name} takes no parameters, found {', '.join(parameters)}")
    if name == "ensemble":
        pairs = _rows(name, parameters, "weights", [2] * (exits - 1))
        ensembles: list[StagePolicy] = [Ensemble(own, before) for own, before in pairs]
        return [Plain(), *ensembles]
    if name == "gate":
        sizes = [ALONE, *[TOGETHER] * (exits - 2)][: exits - 1]
        # After the last exit everything leaves: its score decides nothing.
        gates: list[StagePolicy] = [Gate(row) for row in _rows(name, parameters, "coefficients", sizes)]
        return [*gates, Plain()]
    raise OptionError("exit policy", f"{name!r} is not one of {', '.join((*EXIT_POLICIES, *FITTED))}")


def run_policies(policies: Sequence[StagePolicy], probabilities: Any) -> tuple[Any, Any]:
    """What serving does, in numpy, for images that run through every exit.

    Args:
        policies: one an exit.
        probabilities: [N, K, classes], each exit's own.

    Returns:
        Answers [N, K, classes] and scores [N, K].
    """
    answers: list[Any] = []
    scores: list[Any] = []
    for k, policy in enumerate(policies):
        answer, score = policy(probabilities[:, k], answers[-1] if answers else None)
        answers.append(answer)
        scores.append(score)
    return np.stack(answers, axis=1), np.stack(scores, axis=1)


def _softmax(logits: Any, xp: Any) -> Any:
    if xp is not np:
        # One operator, which in ONNX Runtime works row by row: its exp rounds by the place in the batch.
        return xp.softmax(logits, 1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _logs(probabilities: Any, xp: Any) -> Any:
    return xp.log(xp.clip(probabilities, TINY, 1.0))


def _rows(policy: str, parameters: Mapping[str, Any], key: str, sizes: list[int]) -> list[tuple[float, ...]]:
    rows = parameters.get(key)
    fits = set(parameters) == {key} and isinstance(rows, list | tuple) and len(rows) == len(sizes)
    if not fits or not all(_numbers(row, size) for row, size in zip(rows or (), sizes, strict=True)):
        wanted = ", ".join(map(str, sizes))
        raise OptionError(
            "exit policy parameters",
            f"{policy} takes {key}: {len(sizes)} rows of {wanted} numbers within ±{LARGEST:.0f}",
        )
    return [tuple(float(number) for number in row) for row in rows or ()]


def _numbers(row: Any, size: int) -> bool:
    return (
        isinstance(row, list | tuple)
        and len(row) == size
        and all(isinstance(x, int | float) and not isinstance(x, bool) and -LARGEST <= x <= LARGEST for x in row)
    )
